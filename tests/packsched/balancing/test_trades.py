"""A rank that cannot be placed trades one or two segments with another, and both keep the rest."""

import random

import pytest

from packsched import PackingError, UndecidedWindowError, plan_ranks, plan_window
from packsched.balancing.swaps import PackedRanks
from packsched.balancing.trades import Trading
from packsched.ranks import _Ranks
from tests.packsched.test_ranks import assert_is_a_plan


def traded(lens, cap, packs, *, most_cost=10**9):
    """What two or more ranks hold, and which are planned, after the trades of those that cannot be placed."""

    def plan(here):
        try:
            return plan_window([lens[rank][at] for rank, at in here], cap, packs)
        except PackingError:
            return None

    held = [[(rank, at) for at in range(len(of))] for rank, of in enumerate(lens)]
    plans = [plan(here) for here in held]
    assert None in plans, "every rank is placed before: nothing is shown"
    Trading(lens=lens, costs=lens, tokens=cap * packs, most_cost=most_cost, plan=plan).place(held, plans)
    return held, [found is not None for found in plans]


def test_two_ranks_trade_the_shortest_segments_that_let_both_be_placed():
    lens = [[6, 6, 6, 1], [5, 4, 4, 4, 1]]
    held, placed = traded(lens, 10, 2)
    assert placed == [True, True]
    away = [(rank, at) for rank, here in enumerate(held) for home, at in here if home != rank]
    assert sum(lens[1 - rank][at] for rank, at in away) == 10, "6 for 4: neither 5 nor two segments move"


def test_a_rank_that_a_trade_has_placed_does_not_trade_again():
    lens = [[6, 5, 6], [4, 5, 7, 4]]  # neither fits two packs of 10
    held, placed = traded(lens, 10, 2)
    assert placed == [True, True]
    away = [lens[home][at] for rank, here in enumerate(held) for home, at in here if home != rank]
    assert sum(away) == 13, "a second trade would move 22 tokens"


def test_a_trade_that_costs_too_much_is_not_made():
    lens = [[6, 6, 6, 1], [5, 4, 4, 4, 1]]
    held, placed = traded(lens, 10, 2, most_cost=19)
    assert placed == [True, True]
    assert sum(lens[home][at] for home, at in held[1]) == 19, "6 for 4 and 1, since 6 for 4 would cost 20"
    held, placed = traded(lens, 10, 2, most_cost=18)
    assert placed == [False, True]
    assert held == [[(0, at) for at in range(4)], [(1, at) for at in range(5)]], "a failed trade changes nothing"


def test_groups_are_not_traded_apart(monkeypatch):
    monkeypatch.setattr(Trading, "_trade", lambda *_: pytest.fail("a segment of a group was offered"))
    with pytest.raises(UndecidedWindowError):
        plan_ranks([[6, 6, 6], [1]], 10, 2, groups=[[0, 0, 0], [0]], cost=lambda length: 1)


def test_small_nearly_full_windows_move_little_more_than_they_must():
    """Of two ranks of eight segments in two packs, 98.5 % full; planned as one window they moved 19 % of the tokens."""
    moved = tokens = 0
    for seed in range(30):
        rng = random.Random(seed)
        raw = [rng.lognormvariate(0, 0.6) for _ in range(16)]
        for _ in range(5):
            raw = [min(14000.0, one * 0.985 * 4 * 14000 / sum(raw)) for one in raw]
        lens = [[int(one) for one in raw[:8]], [int(one) for one in raw[8:]]]
        try:
            plan = plan_ranks(lens, 14000, 2)
        except PackingError:
            continue
        assert_is_a_plan(plan, lens, 14000, 2)
        moved += plan.moved_tokens
        tokens += sum(map(sum, lens))
    assert moved <= 0.13 * tokens


def test_ranks_of_hundreds_of_segments_trade_too():
    lens = [[60] * 9 + [1] * 250, [40] * 8 + [30] * 11]
    held, placed = traded(lens, 100, 8)
    assert placed == [True, True]
    assert sum(lens[home][at] for rank, here in enumerate(held) for home, at in here if home != rank) == 60 + 30


def test_costs_beyond_64_bits_are_compared(monkeypatch):
    monkeypatch.setattr(PackedRanks, "place", lambda *_: False)
    monkeypatch.setattr(_Ranks, "_fit", lambda *_: pytest.fail("no trade was found"))
    lens = [[6, 6, 6, 1], [5, 4, 4, 4, 1]]
    plan = plan_ranks(lens, 10, 2, cost=lambda length: length << 70)
    assert_is_a_plan(plan, lens, 10, 2)
    assert plan.straggler <= 1.03
