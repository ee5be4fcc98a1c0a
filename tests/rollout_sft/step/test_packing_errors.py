"""An error of packsched reaches the user of a YAML file with the sample's id and the keys to change."""

import sys

import pytest
from transformers import PretrainedConfig

from packsched import (
    CarryBuffer,
    InfeasibleWindowError,
    MissingBinpackingError,
    OversizedSegmentError,
    PackingError,
    UndecidedWindowError,
    WindowBuffer,
    plan_ranks,
)
from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.step.pack_times import PackTimes
from rollout_sft.step.packing_errors import in_yaml_terms
from rollout_sft.step.schedule import make_schedule


def refusal(act):
    with pytest.raises(PackingError) as caught, in_yaml_terms("img-7"):
        act()
    return caught.value


def test_an_oversized_sample_is_named_with_the_keys_and_the_numbers():
    buffer = WindowBuffer(60, 2)
    error = refusal(lambda: buffer.add("segment", 61))
    assert type(error) is OversizedSegmentError
    assert (error.index, error.encoded_len, error.packing_length) == (0, 61, 60)
    assert str(error) == (
        "sample 'img-7': segment 0 has encoded_len 61, which is 1 more than packing_length 60. Raise packing_length "
        "or make shorter segments; they are never split. In the YAML file: raise global_max_length (or "
        "template.max_length), lower max_new_tokens, leave such samples out with on_oversized: skip, or disable "
        "training.packing."
    )


def test_a_full_buffer_names_the_keys_that_make_room():
    buffer = CarryBuffer(60, packing_buffer=1)
    buffer.add("segment", 1)
    message = str(refusal(lambda: buffer.add("segment", 1)))
    for key in ("training.packing_buffer", "per_device_train_batch_size", "global_max_length"):
        assert key in message


def test_a_window_that_does_not_fit_names_the_keys_that_make_room():
    window = WindowBuffer(60, 1)
    window.add("a", 60)
    window.add("b", 60)
    error = refusal(window.take_packs)
    for key in ("gradient_accumulation_steps", "per_device_train_batch_size", "on_infeasible: extra_steps"):
        assert key in str(error)
    assert (error.bound, error.micro_steps) == (2, 1)


def test_ranks_that_do_not_fit_together_say_by_how_much_and_what_to_change():
    with pytest.raises(InfeasibleWindowError) as caught, in_yaml_terms(ranks=2):
        plan_ranks([[60, 60], [60, 60, 60]], 60, 2)
    assert str(caught.value) == (
        "5 segments of 300 tokens in all need at least 5 packs of packing_length 60 (proof: volume), and the window "
        "has 4 micro-steps, 240 tokens. To fix: use more micro_steps, fewer or shorter segments, or a larger "
        "packing_length. In scope global this is the window of all 2 ranks, with 2 micro-steps each; at least 1 more "
        "pack would be needed, so at least 3 micro-steps for each rank. In the YAML file: raise "
        "gradient_accumulation_steps, lower per_device_train_batch_size, raise global_max_length, lower "
        "max_new_tokens, or set on_infeasible: extra_steps."
    )


def test_ranks_without_a_plan_or_a_proof_claim_no_missing_packs():
    with pytest.raises(UndecidedWindowError) as caught, in_yaml_terms(ranks=2):
        plan_ranks([[6, 6, 6], [1]], 10, 2, groups=[[0, 0, 0], [0]], cost=lambda length: 1)
    assert " In scope global this is the window of all 2 ranks, with 2 micro-steps each. In the" in str(caught.value)
    assert "would be needed" not in str(caught.value)


def test_a_refused_argument_gets_no_advice_about_lengths():
    message = str(refusal(lambda: WindowBuffer(60, 0)))
    assert message == "sample 'img-7': micro_steps is 0; it must be at least 1."


def test_a_missing_binpacking_names_the_way_to_train_without_packing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "binpacking", None)
    config = RolloutSFTConfig(output_dir=str(tmp_path), global_max_length=64, use_cpu=True)
    advice = r"pip install 'binpacking.*In the YAML file: .*disable training\.packing"
    with pytest.raises(MissingBinpackingError, match=advice) as caught:
        make_schedule(config, PretrainedConfig(), lambda _: (0, 0), PackTimes(config.device, active=False))
    assert caught.value.name == "binpacking"
