"""Every hybrid family on one rank: what stands in benchmarks/results/families.md."""

import pytest
import torch

from rollout_sft.checks.leak_probe import check_isolation
from tests.families_table import HYBRIDS as TABLE
from tests.families_table import record
from tests.hybrids import FLOAT32, HYBRIDS, TOLERANCE, hybrid
from tests.rollout_sft.model.test_recurrent import alone, as_trained, gradient, packed, segments, window_difference
from tests.rollout_sft.step.test_gradient import relative_difference

pytestmark = pytest.mark.families


@pytest.mark.parametrize("scope", ["micro", "window", "global"])
@pytest.mark.parametrize("family", HYBRIDS)
def test_the_gradient_of_a_window_is_that_of_its_segments(make_trainer, tokenizer, family, scope, caplog):
    found = window_difference(family, scope, make_trainer, tokenizer, caplog)
    record(TABLE, family, {f"1 rank, {scope}": found})
    assert found < TOLERANCE.get(family, 1e-10)


@pytest.mark.parametrize("family", HYBRIDS)
def test_the_probe_and_the_parts_in_float32(family):
    """The float32 parts of a family round differently where segments share a call; nothing else may differ."""
    model, parts = hybrid(family, torch.float32 if family in FLOAT32 else torch.float64), segments()
    expected = gradient(model, alone(parts))
    single = hybrid(family, torch.float32)
    with as_trained(model).active(), as_trained(single).active():
        rounding = relative_difference(gradient(model, packed(model, parts)), expected)
        leak = check_isolation(single).leak
    record(TABLE, family, {"own precision": rounding, "probe": leak})
    assert rounding < (TOLERANCE[family] if family in FLOAT32 else 1e-6)
    assert leak <= 2e-6
