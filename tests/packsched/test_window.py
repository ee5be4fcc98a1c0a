"""Every segment of a window in exactly one pack, or a refusal that says why."""

import pytest

from packsched.errors import InfeasibleWindowError, OversizedSegmentError, PackingError
from packsched.window import WindowPlan, plan_window


def assert_is_a_plan(plan: WindowPlan, lens: list[int], packing_length: int, micro_steps: int) -> None:
    assert len(plan.packs) == micro_steps
    assert sorted(index for pack in plan.packs for index in pack) == list(range(len(lens)))
    assert all(list(pack) == sorted(pack) for pack in plan.packs)
    assert plan.pack_lens == tuple(sum(lens[index] for index in pack) for pack in plan.packs)
    assert max(plan.pack_lens) <= packing_length
    full = plan.packs[: plan.non_empty]
    assert all(full) and not any(plan.packs[plan.non_empty :])
    assert [pack[0] for pack in full] == sorted(pack[0] for pack in full)
    assert plan.lower_bound <= plan.non_empty


@pytest.mark.parametrize("objective", ["dense", "balanced"])
@pytest.mark.parametrize(
    ("lens", "packing_length", "micro_steps"),
    [
        ([1, 1, 4, 6, 6], 10, 2),
        ([3, 3, 2, 2, 2], 6, 2),
        ([5, 5, 4, 4, 3, 3, 3], 9, 3),
        ([3, 4], 10, 5),
        ([5, 5, 5, 5], 10, 3),
        ([], 10, 2),
    ],
)
def test_places_every_window_that_earlier_schedulers_rejected(lens, packing_length, micro_steps, objective):
    plan = plan_window(lens, packing_length, micro_steps, objective=objective)
    assert_is_a_plan(plan, lens, packing_length, micro_steps)


def test_too_many_tokens_is_infeasible_with_numbers_and_mitigations():
    with pytest.raises(InfeasibleWindowError) as caught:
        plan_window([6, 6, 6], 10, 1)
    for part in ("18 tokens", "packing_length 10", "1 micro-steps", "gradient_accumulation_steps",
                 "per_device_train_batch_size", "global_max_length", "max_new_tokens"):  # fmt: skip
        assert part in str(caught.value)


def test_three_long_segments_do_not_fit_two_packs_though_their_tokens_do():
    with pytest.raises(InfeasibleWindowError, match="Martello-Toth"):
        plan_window([6, 6, 6], 10, 2)


def test_oversized_segment_is_refused_before_anything_else():
    with pytest.raises(OversizedSegmentError, match="segment 1 has encoded_len 11"):
        plan_window([5, 11], 10, 4)


@pytest.mark.parametrize(
    ("lens", "packing_length", "micro_steps", "objective"),
    [([1], 10, 0, "dense"), ([1], 10, -1, "dense"), ([1], 0, 1, "dense"), ([1.5], 10, 1, "dense"),
     (["a"], 10, 1, "dense"), ([0], 10, 1, "dense"), ([1], 10, 1, "tight")],
)  # fmt: skip
def test_bad_arguments_are_refused(lens, packing_length, micro_steps, objective):
    with pytest.raises(PackingError):
        plan_window(lens, packing_length, micro_steps, objective=objective)
