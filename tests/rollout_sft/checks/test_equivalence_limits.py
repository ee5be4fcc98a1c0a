"""The arithmetic half of the equivalence check measures relative differences and draws its line by dtype."""

import pytest
import torch

from rollout_sft.checks.equivalence import TOLERANCE, ScheduleMismatchError, check_arithmetic, check_bookkeeping
from rollout_sft.inputs.segment import pack_of
from rollout_sft.step.collate import collate_pack
from tests.rollout_sft.checks.test_equivalence import segments, window


class Two(torch.nn.Module):
    """Two parameters; a batch's loss is their product with sums over its tokens, weighted."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(2.0, dtype=dtype))
        self.b = torch.nn.Parameter(torch.tensor(3.0, dtype=dtype))


def compare(dtype=torch.float64, *, loss=0.0, gradient=0.0):
    """With packs whose loss is too large by a share of itself, or their gradient by a share of itself."""
    model = Two(dtype)
    due = segments()
    batches = [collate_pack(pack_of(due), filler_id=0)]

    def loss_of(batch):
        weight = batch.weights.sum().to(dtype)
        value = (model.a * model.b) * weight
        if "attention_mask" in batch.forward or len(batch.pack.segments) == 1:
            return value
        wrong = value + gradient * (value - value.detach())
        return wrong + loss * value.detach()

    return check_arithmetic(model, loss_of, due, batches, filler_id=0)


def test_equal_packs_differ_by_nothing():
    found = compare()
    assert (found.loss, found.gradient, found.tolerance) == (0.0, 0.0, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_difference_may_reach_the_tolerance_of_its_dtype_and_no_more(dtype, what):
    tolerance = TOLERANCE[dtype]
    assert getattr(compare(dtype, **{what: 0.5 * tolerance}), what) <= tolerance
    with pytest.raises(ScheduleMismatchError, match=f"disagree: .*allowed {tolerance:.0e}"):
        compare(dtype, **{what: 2 * tolerance})
    with pytest.raises(ScheduleMismatchError, match="disagree"):
        compare(dtype, **{what: float("nan")})


def test_differences_are_relative():
    with pytest.raises(ScheduleMismatchError, match=r"loss by 5\.0e-01, gradient by 0\.0e\+00 \(relative"):
        compare(loss=0.5)
    with pytest.raises(ScheduleMismatchError, match=r"loss by 0\.0e\+00, gradient by 2\.5e-01 \(relative"):
        compare(gradient=-0.25)


def test_under_autocast_its_dtype_decides():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compare(torch.float32, gradient=1e-3).tolerance == TOLERANCE[torch.bfloat16]
    with pytest.raises(ScheduleMismatchError):
        compare(torch.float32, gradient=1e-3)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_token_too_few_or_too_many_is_counted(change):
    due, batches = window()
    row = batches[0].forward["input_ids"]
    batches[0].forward["input_ids"] = row[:, :-1] if change < 0 else torch.cat([row, row[:, :1]], dim=1)
    with pytest.raises(ScheduleMismatchError, match=f"micro-step 0 has {12 + change} tokens, its segments 12"):
        check_bookkeeping(due, batches)


def test_a_difference_in_a_later_micro_step_is_found_there():
    due, batches = window()
    batches[1].forward["input_ids"] = batches[1].forward["input_ids"] + torch.tensor([[0, 0, 0, 1]])
    message = "micro-step 1, segment of sample 's2', field input_ids, position 3: the segment has 23, the pack 24"
    with pytest.raises(ScheduleMismatchError, match=message):
        check_bookkeeping(due, batches)
