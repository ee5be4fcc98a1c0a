"""What `plan_ranks` takes beyond lengths: costs of segments, groups, and a number of micro-steps to find."""

import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packsched import InfeasibleWindowError, PackingError, UndecidedWindowError, plan_ranks, plan_window
from packsched.balancing.bounds import least_given
from packsched.balancing.swaps import PackedRanks
from tests.packsched.test_ranks import assert_is_a_plan, few_segments_a_rank, log_normal_ranks


def near_half(ranks, segments=8, seed=0):
    rng = random.Random(seed)
    return [[int(7000 * (0.9 + 0.2 * rng.random())) for _ in range(segments)] for _ in range(ranks)]


def nearly_full(seed, ranks, fill, segments=32, micro_steps=8):
    rng = random.Random(seed)
    raw = [rng.lognormvariate(0, 0.6) for _ in range(segments * ranks)]
    for _ in range(5):
        scale = fill * micro_steps * 14000 * ranks / sum(raw)
        raw = [min(14000.0, one * scale) for one in raw]
    return [[int(one) for one in raw[segments * rank :][:segments]] for rank in range(ranks)]


def test_near_half_segments_of_many_ranks_are_levelled_by_exchanges():
    lens = near_half(64)
    plan = plan_ranks(lens, 14000, 5)
    assert_is_a_plan(plan, lens, 14000, 5)
    assert plan.straggler <= 1.03 < plan.straggler_before
    assert plan.moved_tokens <= 3 * plan.least_moved_tokens


@pytest.mark.parametrize("fill", [0.985, 0.995])
def test_a_nearly_full_global_window_moves_at_most_three_times_the_least(fill):
    lens = nearly_full(0, 64, fill)
    plan = plan_ranks(lens, 14000, 8)
    assert_is_a_plan(plan, lens, 14000, 8)
    assert sum(map(sum, lens)) > 0.98 * 64 * 8 * 14000
    assert plan.straggler <= 1.03 < plan.straggler_before
    assert plan.moved_tokens <= 3 * plan.least_moved_tokens


def test_ranks_of_few_segments_end_level_though_half_cannot_be_placed_alone():
    lens = few_segments_a_rank(0, 64)
    plan = plan_ranks(lens, 14000, 4)
    assert_is_a_plan(plan, lens, 14000, 4)
    assert plan.straggler <= 1.03
    assert plan.moved_tokens <= sum(map(sum, lens)) / 4


def test_a_window_that_all_ranks_together_cannot_hold_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(PackedRanks, "place", lambda *_: pytest.fail("the bounds prove it, and nothing is searched"))
    with pytest.raises(InfeasibleWindowError) as caught:
        plan_ranks(near_half(256), 14000, 4)
    assert caught.value.bound > caught.value.micro_steps == 1024


def test_costs_that_do_not_follow_the_length_are_levelled():
    lens = [[10, 10, 10, 10], [10, 10, 10, 10]]
    plan = plan_ranks(lens, 20, 2, cost=[[9, 9, 9, 9], [1, 1, 1, 1]])
    assert_is_a_plan(plan, lens, 20, 2)
    assert plan.costs == (20, 20), "an image costs more than its tokens show"
    by_length = plan_ranks(lens, 20, 2, cost=lambda length: length)
    assert by_length.moves == ()


def test_costs_as_numbers_and_as_a_function_give_one_plan():
    lens = log_normal_ranks(0, 8)
    assert plan_ranks(lens, 14000, 8, cost=lambda n: n * n) == plan_ranks(
        lens, 14000, 8, cost=[[n * n for n in rank] for rank in lens]
    )


def test_no_plan_is_below_the_bound_of_its_straggler():
    """One segment costs more than a rank's share, so no rank can be level."""
    plan = plan_ranks([[100], [10, 10], [10, 10]], 100, 1, cost=lambda length: length)
    assert plan.least_cost == max(plan.costs) == 100
    assert plan.straggler == plan.straggler_bound == pytest.approx(100 / (140 / 3))
    level = plan_ranks([[4, 4], [4, 4]], 8, 1)
    assert level.straggler_bound == level.straggler == 1.0


def brute_force_least_given(lens, costs, limit, cap, micro_steps):
    least = sum(lens)
    for keeps in product([False, True], repeat=len(lens)):
        kept = [n for n, keep in zip(lens, keeps, strict=True) if keep]
        if sum(c for c, keep in zip(costs, keeps, strict=True) if keep) > limit:
            continue
        try:
            plan_window(kept, cap, micro_steps)
        except PackingError:
            continue
        least = min(least, sum(lens) - sum(kept))
    return least


def test_the_least_given_tokens_never_exceed_those_of_brute_force():
    rng = random.Random(3)
    exact = 0
    for _ in range(150):
        lens = [rng.randint(1, 20) for _ in range(rng.randint(1, 7))]
        costs = [n * (5 + n) for n in lens]
        limit, cap = rng.randint(max(costs), sum(costs) + 1), max(20, *lens)
        bound = least_given(lens, costs, limit, cap, 2)
        true = brute_force_least_given(lens, costs, limit, cap, 2)
        assert bound <= true
        exact += bound == true
    assert exact > 50, "a bound of 0 would hold as well"


def assert_groups_stay_together(plan, groups):
    where = {(from_rank, at): rank for rank, here in enumerate(plan.segments) for from_rank, at in here}
    for rank, of_rank in enumerate(groups):
        for group in set(of_rank):
            assert len({where[rank, at] for at, one in enumerate(of_rank) if one == group}) == 1


def test_the_segments_of_a_group_stay_on_one_rank():
    lens = log_normal_ranks(0, 8)
    groups = [[at // 4 for at in range(32)] for _ in lens]
    plan = plan_ranks(lens, 14000, 10, groups=groups)
    assert_is_a_plan(plan, lens, 14000, 10)
    assert_groups_stay_together(plan, groups)
    assert plan.moves
    assert plan.straggler < 1.1 < plan.straggler_before
    apart = plan_ranks(lens, 14000, 10)
    assert plan.least_cost >= apart.least_cost


def test_a_group_leaves_as_a_whole_where_its_rank_cannot_be_placed():
    lens = [[6, 6, 6, 6], [1]]
    plan = plan_ranks(lens, 10, 2, groups=[[0, 1, 1, 0], [0]], cost=lambda length: 1)
    assert_is_a_plan(plan, lens, 10, 2)
    assert_groups_stay_together(plan, [[0, 1, 1, 0], [0]])
    assert len(plan.moves) == 2


def test_groups_that_no_rank_can_take_are_undecided_and_never_split():
    lens = [[6, 6, 6], [1]]
    with pytest.raises(UndecidedWindowError):
        plan_ranks(lens, 10, 2, groups=[[0, 0, 0], [0]], cost=lambda length: 1)
    assert len(plan_ranks(lens, 10, 2, cost=lambda length: 1).moves) == 1


def test_the_fewest_common_micro_steps_are_found_and_rounded_up():
    lens = [[6, 6, 6, 6], [3, 3]]
    plan = plan_ranks(lens, 10, None)
    assert [len(rank.packs) for rank in plan.plans] == [2, 2]
    assert_is_a_plan(plan, lens, 10, 2)
    plan = plan_ranks(lens, 10, None, multiple_of=4)
    assert_is_a_plan(plan, lens, 10, 4)
    assert [len(rank.packs) for rank in plan_ranks([[], []], 10, None, multiple_of=3).plans] == [3, 3]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 2)), max_size=8), min_size=1, max_size=4),
    st.integers(1, 3),
    st.sampled_from(["dense", "balanced", "cost"]),
)
def test_any_groups_are_kept_whatever_the_objective(ranks, multiple_of, objective):
    lens = [[length for length, _ in rank] for rank in ranks]
    groups = [[group for _, group in rank] for rank in ranks]
    plan = plan_ranks(lens, 20, None, groups=groups, multiple_of=multiple_of, objective=objective)
    assert_is_a_plan(plan, lens, 20, len(plan.plans[0].packs))
    assert len(plan.plans[0].packs) % multiple_of == 0
    assert_groups_stay_together(plan, groups)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cost": [[1]]}, "cost holds 1 ranks, but there are 2"),
        ({"cost": [[1, 1], [1, 1]]}, "rank 1: there are 2 costs for 1 segments"),
        ({"cost": [[1, 0], [1]]}, "rank 0: the cost of segment 1 is 0"),
        ({"groups": [[0, 0], [0, 0]]}, r"groups holds \[2, 2\] segments"),
        ({"groups": [[0, "a"], [0]]}, "a group is 'a'"),
        ({"multiple_of": 2}, "multiple_of is 2, but micro_steps is 3"),
    ],
)
def test_bad_options_are_refused(options, text):
    with pytest.raises(PackingError, match=text):
        plan_ranks([[4, 5], [6]], 10, 3, **options)
