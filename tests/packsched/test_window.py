"""Every segment of a window in exactly one pack, or a refusal that says why."""

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packsched.errors import (
    InfeasibleWindowError,
    OversizedSegmentError,
    PackingError,
    UndecidedWindowError,
)
from packsched.planner.greedy import best_fit_decreasing, first_fit_decreasing
from packsched.window import WindowPlan, plan_window


def assert_is_a_plan(plan: WindowPlan, lens: list[int], packing_length: int, micro_steps: int) -> None:
    assert len(plan.packs) == micro_steps
    assert sorted(index for pack in plan.packs for index in pack) == list(range(len(lens)))
    assert all(list(pack) == sorted(pack) for pack in plan.packs)
    assert plan.pack_lens == tuple(sum(lens[index] for index in pack) for pack in plan.packs)
    assert max(plan.pack_lens, default=0) <= packing_length
    full = plan.packs[: plan.non_empty]
    assert all(full)
    assert not any(plan.packs[plan.non_empty :])
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
    for part in ("18 tokens", "packing_length 10", "1 micro-steps", "more micro_steps",
                 "fewer or shorter segments", "a larger packing_length"):  # fmt: skip
        assert part in str(caught.value)


def test_three_long_segments_do_not_fit_two_packs_though_their_tokens_do():
    with pytest.raises(InfeasibleWindowError, match="at least 3 packs of packing_length 10 "):
        plan_window([6, 6, 6], 10, 2)
    with pytest.raises(InfeasibleWindowError, match="Martello-Toth"):
        plan_window([6, 7, 6], 10, 2)


@pytest.mark.parametrize("objective", ["dense", "balanced"])
def test_lengths_with_a_common_unit_are_planned_in_that_unit(objective):
    """Multiples of 64 fill at most 13,952 of 14,000 tokens: what looks 99.9 % full cannot fit."""
    cut = [64 * length for length in cut_full_packs(random.Random(3), 32, 4, 14000 // 64, even=False)]
    over = [*cut, 64]  # one unit more than 32 packs hold, though 32 * 14000 tokens are not reached
    assert sum(over) < 32 * 14000
    with pytest.raises(
        InfeasibleWindowError,
        match=r"at least 33 packs of packing_length 14000 \(proof: volume; all lengths are multiples of 64, so a pack "
        r"holds at most 13952 tokens\), and the window has 32 micro-steps, 448000 tokens",
    ):
        plan_window(over, 14000, 32, objective=objective)
    rng = random.Random(4)
    for _ in range(30):
        unit, rest = rng.choice((2, 64, 128)), rng.random()
        small = [rng.randint(1, 40) for _ in range(20)]
        plan = plan_window([unit * length for length in small], 60 * unit + int(rest * unit), 20, objective=objective)
        expected = plan_window(small, 60, 20, objective=objective)
        assert plan.packs == expected.packs
        assert plan.pack_lens == tuple(unit * length for length in expected.pack_lens)
        assert (plan.lower_bound, plan.optimal) == (expected.lower_bound, expected.optimal)


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


@pytest.mark.parametrize("lens", [{3, 5}, frozenset({5}), {5: 1, 3: 2}, {5: 1}.keys()])
def test_lengths_without_an_order_are_refused(lens):
    with pytest.raises(PackingError, match=r"^the lengths are .*; give a sequence of integers\.$"):
        plan_window(lens, 10, 2)


def test_a_plan_prints_its_numbers_and_not_its_packs():
    assert repr(plan_window([1, 1, 4, 6, 6], 10, 3)) == (
        "WindowPlan(5 segments, 18 tokens, 2 of 3 packs, longest 10, lower_bound=2, optimal=True)"
    )
    assert repr(plan_window([], 10, 1)) == (
        "WindowPlan(0 segments, 0 tokens, 0 of 1 packs, longest 0, lower_bound=0, optimal=True)"
    )


def test_as_few_packs_as_it_takes():
    plan = plan_window([5, 5, 4, 6, 10], 10, None)
    assert_is_a_plan(plan, [5, 5, 4, 6, 10], 10, 3)
    assert plan.optimal
    assert plan_window([], 10, None).packs == ()


def test_leveling_needs_a_number_of_packs():
    with pytest.raises(PackingError, match="micro_steps is None"):
        plan_window([1], 10, None, objective="balanced")


@pytest.mark.parametrize("effort", [0, -1, float("nan"), float("inf"), "high", True, np.True_, None, 1j])
def test_effort_is_a_positive_number(effort):
    with pytest.raises(PackingError, match="effort"):
        plan_window([1], 10, 1, effort=effort)


@pytest.mark.parametrize("effort", [1, np.float32(1), np.int64(2), 1e306, 10**400])
def test_effort_is_any_positive_number(effort):
    assert plan_window([4, 4, 4, 5, 5, 5, 6, 7], 10, 5, effort=effort).non_empty == 5


def by_every_assignment(lens: list[int], cap: int, micro_steps: int) -> tuple[int, int | None]:
    """The fewest packs, and the shortest longest of `micro_steps` packs (None: they do not fit)."""
    fewest, shortest = len(lens), None

    def place(at: int, loads: list[int]) -> None:
        nonlocal fewest, shortest
        if at == len(lens):
            fewest = min(fewest, len(loads))
            if len(loads) <= micro_steps:
                longest = max(loads, default=0)
                shortest = longest if shortest is None else min(shortest, longest)
            return
        for pack in range(len(loads)):
            if loads[pack] + lens[at] <= cap:
                loads[pack] += lens[at]
                place(at + 1, loads)
                loads[pack] -= lens[at]
        place(at + 1, [*loads, lens[at]])

    place(0, [])
    return fewest, shortest


@pytest.mark.parametrize("objective", ["dense", "balanced"])
def test_small_windows_are_decided_exactly(objective):
    rng = random.Random(30)
    for _ in range(700):
        cap, micro_steps = rng.choice((6, 10, 20, 50, 100)), rng.randint(1, 4)
        top = cap if rng.random() < 0.5 else cap // 2
        lens = [rng.randint(1, top) for _ in range(rng.randint(0, 8))]
        fewest, shortest = by_every_assignment(lens, cap, micro_steps)
        if shortest is None:
            with pytest.raises(InfeasibleWindowError):
                plan_window(lens, cap, micro_steps, objective=objective)
            continue
        plan = plan_window(lens, cap, micro_steps, objective=objective)
        assert_is_a_plan(plan, lens, cap, micro_steps)
        assert plan.optimal
        assert plan.lower_bound <= fewest
        if objective == "dense":
            assert plan.non_empty == plan.lower_bound == fewest
        else:
            assert max(plan.pack_lens) == shortest


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 100), max_size=60),
    st.integers(1, 30),
    st.sampled_from(["dense", "balanced"]),
)
def test_any_window_is_placed_or_refused_with_a_reason(lens, micro_steps, objective):
    try:
        plan = plan_window(lens, 100, micro_steps, objective=objective, effort=0.1)
    except InfeasibleWindowError:
        assert 2 * sum(lens) > 100 * micro_steps
    except UndecidedWindowError:
        assert sum(lens) > 50 * micro_steps
    else:
        assert_is_a_plan(plan, lens, 100, micro_steps)
        assert plan == plan_window(lens, 100, micro_steps, objective=objective, effort=0.1)
        assert plan_window(lens, 100, None, effort=0.1).lower_bound <= plan.non_empty


def cut_full_packs(rng: random.Random, packs: int, per_pack: int, cap: int, *, even: bool) -> list[int]:
    lens = []
    for _ in range(packs):
        if even:
            marks = [
                cap * k // per_pack + rng.randint(-cap // (8 * per_pack), cap // (8 * per_pack))
                for k in range(per_pack + 1)
            ]
        else:
            marks = sorted(rng.sample(range(cap), per_pack + 1))
        marks[0], marks[-1] = 0, cap
        lens += [end - start for start, end in pairwise(marks)]
    rng.shuffle(lens)
    return lens


@pytest.mark.parametrize(
    ("packs", "per_pack", "even"),
    [(16, 8, False), (16, 8, True), (16, 16, False), (16, 16, True), (16, 3, False), (16, 3, True), (12, 6, True)],
)  # fmt: skip
def test_windows_without_slack_are_placed(packs, per_pack, even):
    rng = random.Random(31)
    for _ in range(3):
        lens = cut_full_packs(rng, packs, per_pack, 16384, even=even)
        plan = plan_window(lens, 16384, packs)
        assert_is_a_plan(plan, lens, 16384, packs)
        assert set(plan.pack_lens) == {16384}


@pytest.mark.parametrize("per_pack", [3, 4, 8])
def test_windows_with_one_percent_of_slack_are_placed(per_pack):
    rng = random.Random(32)
    for _ in range(5):
        lens = [max(1, length * 99 // 100) for length in cut_full_packs(rng, 16, per_pack, 16384, even=False)]
        assert_is_a_plan(plan_window(lens, 16384, 16), lens, 16384, 16)


def test_balanced_reaches_the_mean_with_sixteen_segments_a_pack():
    rng = random.Random(33)
    for _ in range(5):
        lens = [min(16384, int(rng.lognormvariate(6.5, 0.6)) + 1) for _ in range(128)]
        plan = plan_window(lens, 16384, 8, objective="balanced")
        assert max(plan.pack_lens) == -(-sum(lens) // 8)
        assert plan.optimal


def test_first_fit_sometimes_needs_fewer_packs_than_best_fit():
    rng = random.Random(FIRST_FIT_WINS)
    values = [rng.randint(5, 100) for _ in range(20)]
    lens = [rng.choice(values) for _ in range(5000)]
    plan = plan_window(lens, 150, None)
    assert_is_a_plan(plan, lens, 150, len(plan.packs))
    longest_first = sorted(lens, reverse=True)
    first_fit = first_fit_decreasing(longest_first, 150)
    assert plan.non_empty == len(first_fit) < len(best_fit_decreasing(longest_first, 150))
    assert plan_window(lens, 150, len(first_fit)).non_empty == len(first_fit)


FIRST_FIT_WINS = 113


def test_lengths_beyond_64_bits_are_planned_or_refused_in_words():
    big = 2**61
    assert plan_window([big] * 5, 2 * big, 3).non_empty == 3
    assert plan_window([big + 1, big, big - 1, 3], 2 * big, 2).non_empty == 2
    with pytest.raises(InfeasibleWindowError):
        plan_window([big + 1] * 3, 2 * big, 2)
    # Fits, but neither best fit nor first fit finds it, and sums of 2^61 tokens are not tabulated.
    lens = [one * 7**20 for one in (5, 5, 5, 4, 3, 3, 3, 2)]
    lens[0] += 1  # no common divisor
    for objective in ("dense", "balanced"):
        with pytest.raises(UndecidedWindowError, match="Windows this large are not searched"):
            plan_window(lens, 10 * 7**20 + 1, 3, objective=objective)


def test_a_large_window_takes_no_more_packs_than_first_fit_decreasing():
    rng = random.Random(34)
    lens = [min(16384, int(rng.lognormvariate(7.5, 0.8)) + 1) for _ in range(6000)]
    rooms: list[int] = []
    for length in sorted(lens, reverse=True):
        fitting = next((at for at, room in enumerate(rooms) if room >= length), None)
        if fitting is None:
            rooms.append(16384 - length)
        else:
            rooms[fitting] -= length
    plan = plan_window(lens, 16384, None)
    assert_is_a_plan(plan, lens, 16384, len(plan.packs))
    assert plan.non_empty <= len(rooms)
    level = plan_window(lens, 16384, len(rooms) + 1, objective="balanced")
    assert_is_a_plan(level, lens, 16384, len(rooms) + 1)


def test_giving_up_is_not_called_infeasible():
    """Feasible by construction, but out of reach of the little work allowed."""
    rng = random.Random(35)
    lens = cut_full_packs(rng, 40, 4, 10**4, even=False)
    for objective in ("dense", "balanced"):
        with pytest.raises(UndecidedWindowError, match="effort="):
            plan_window(lens, 10**4, 40, objective=objective, effort=0.02)


def test_a_proof_by_search_says_so():
    """The volume fits, every bound passes, and yet nothing does: only the search can tell."""
    with pytest.raises(InfeasibleWindowError, match="exhaustive search"):
        plan_window([42, 50, 56, 30, 33, 23, 30, 30], 100, 3)
    with pytest.raises(InfeasibleWindowError, match="exhaustive search"):
        plan_window([26, 25, 20, 19, 18, 18, 16, 16, 15, 11, 11], 50, 4)


def test_a_proof_by_weights_says_so():
    with pytest.raises(InfeasibleWindowError, match="column generation"):
        plan_window([58, 52, 49, 47, 44, 42, 41, 40, 37, 33, 31, 13], 100, 5)


def test_optimal_is_claimed_only_with_a_proof():
    """Sixteen full packs, cut so that little work does not find them: one pack more, or longer ones, are no proof."""
    lens = cut_full_packs(random.Random(36), 16, 4, 16384, even=False)
    dense = plan_window(lens, 16384, 17, effort=0.01)
    assert (dense.non_empty, dense.lower_bound, dense.optimal) == (17, 16, False)
    balanced = plan_window(lens, 20000, 16, objective="balanced", effort=0.01)
    assert max(balanced.pack_lens) > 16384
    assert not balanced.optimal


def test_more_effort_finds_what_little_does_not():
    lens = cut_full_packs(random.Random(37), 32, 4, 16384, even=True)
    with pytest.raises(UndecidedWindowError):
        plan_window(lens, 16384, 32, effort=0.01)
    assert plan_window(lens, 16384, 32).non_empty == 32
