"""Objective `cost`: packs cost the same, and the cap stays hard."""

import random
from itertools import product

import pytest

from packsched import InfeasibleWindowError, PackingError, SegmentCost, WindowBuffer, plan_window

QUADRATIC = SegmentCost(linear=1, quadratic=1)


def costs_of(plan, costs):
    return [sum(costs[index] for index in pack) for pack in plan.packs]


def assert_is_a_plan(plan, lens, cap):
    assert sorted(index for pack in plan.packs for index in pack) == list(range(len(lens)))
    assert all(
        sum(lens[index] for index in pack) == n <= cap for pack, n in zip(plan.packs, plan.pack_lens, strict=True)
    )


def test_packs_are_levelled_by_cost_and_not_by_tokens():
    lens = [8, 4, 4, 2, 2, 2, 2]
    costs = list(map(QUADRATIC, lens))
    plan = plan_window(lens, 16, 2, objective="cost", cost=QUADRATIC)
    assert_is_a_plan(plan, lens, 16)
    assert max(costs_of(plan, costs)) == 72, "the segment of 8 alone, though the other pack holds 16 tokens"
    assert plan.optimal
    by_tokens = plan_window(lens, 16, 2, objective="balanced")
    assert max(costs_of(by_tokens, costs)) > 72


def test_no_plan_costs_less_than_those_called_optimal():
    rng = random.Random(0)
    optimal = close = 0
    for _ in range(120):
        lens = [rng.randint(1, 9) for _ in range(rng.randint(1, 7))]
        costs = [rng.randint(1, 30) for _ in lens]
        best = None
        for packs in product(range(3), repeat=len(lens)):
            tokens, spent = [0] * 3, [0] * 3
            for at, pack in enumerate(packs):
                tokens[pack] += lens[at]
                spent[pack] += costs[at]
            if max(tokens) <= 14 and (best is None or max(spent) < best):
                best = max(spent)
        try:
            plan = plan_window(lens, 14, 3, objective="cost", cost=costs)
        except InfeasibleWindowError:
            assert best is None
            continue
        assert_is_a_plan(plan, lens, 14)
        highest = max(costs_of(plan, costs))
        assert highest >= best
        assert highest == best or not plan.optimal
        optimal += plan.optimal
        close += highest <= 1.1 * best
    assert optimal > 50
    assert close > 105


def test_the_cap_comes_before_the_cost():
    """The cheapest pack has no room: four equal costs, but no two of the long ones fit together with a short one."""
    lens, costs = [6, 6, 4, 4], [1, 1, 9, 9]
    plan = plan_window(lens, 10, 2, objective="cost", cost=costs)
    assert_is_a_plan(plan, lens, 10)
    lens, costs = [5, 5, 4, 3, 3], [9, 1, 1, 1, 9]
    assert_is_a_plan(plan_window(lens, 10, 2, objective="cost", cost=costs), lens, 10)


def test_costs_of_any_size_are_levelled():
    lens = [5, 4, 3, 2, 2]
    small = plan_window(lens, 16, 2, objective="cost", cost=list(map(QUADRATIC, lens)))
    large = plan_window(lens, 16, 2, objective="cost", cost=[10**30 * QUADRATIC(n) for n in lens])
    assert small.packs == large.packs


def test_a_window_buffer_takes_the_cost_of_each_segment():
    window = WindowBuffer(16, 2, objective="cost")
    for name, cost in [("image", 9), ("a", 3), ("b", 3), ("c", 3)]:
        window.add(name, 4, cost=cost)
    assert [pack.segments for pack in window.take_packs()] == [("image",), ("a", "b", "c")]
    window._check()
    window.add("a", 4, cost=1)
    with pytest.raises(PackingError, match="the cost of segment 1 is 0"):
        window.add("b", 4, cost=0)
    window._check()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cost": QUADRATIC}, "objective is 'dense'; only objective 'cost'"),
        ({"objective": "cost", "cost": [1]}, "1 costs for 2 segments"),
        ({"objective": "cost", "cost": lambda length: -length}, r"cost\(4\) is -4"),
    ],
)
def test_bad_costs_of_a_window_are_refused(options, text):
    with pytest.raises(PackingError, match=text):
        plan_window([4, 5], 10, 2, **options)


def test_a_given_number_of_packs_is_needed_to_level_costs():
    with pytest.raises(PackingError, match="objective 'cost' levels a given number"):
        plan_window([4, 5], 10, None, objective="cost")
