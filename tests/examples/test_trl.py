"""The examples for TRL's trainers run, and each reaches the gradient that it should."""

import pytest

pytest.importorskip("trl", reason="TRL is not installed; the extra dev has it")

from examples import trl_grpo, trl_sft


def test_sft_packed_gives_the_unpacked_gradient():
    apart, steps = trl_sft.main()
    assert apart < 1e-6
    assert steps == 5, "72 samples in windows of 16"


def test_grpo_packed_gives_the_gradient_of_trl():
    apart, planned = trl_grpo.main()
    assert apart < 1e-6
    assert planned != [4, 4, 4, 4], "the plan divides by tokens, not by rows"
