"""Windows of many ranks that are planned at once get the plans that each would get alone."""

from math import gcd

from hypothesis import given, settings
from hypothesis import strategies as st

from packsched import plan_window
from packsched.balancing.easy_windows import plan_easy_windows
from packsched.planner.greedy import best_fit_decreasing

CAP = 50


def best_fit_is_enough(lens, packs):
    """Whether best fit needs as few packs as the tokens do."""
    unit = gcd(*lens) or 1
    room = CAP // unit * unit
    return len(best_fit_decreasing(sorted(lens, reverse=True), room)) == -(-sum(lens) // room) <= packs


multiples = st.integers(1, 12).flatmap(lambda unit: st.lists(st.integers(1, CAP // unit).map(unit.__mul__), max_size=9))
windows = st.one_of(st.lists(st.integers(1, CAP), max_size=9), multiples)


@settings(max_examples=60, deadline=None)
@given(st.lists(windows, min_size=32, max_size=40), st.integers(1, 7))
def test_easy_windows_get_the_plan_of_plan_window(windows, micro_steps):
    plans = plan_easy_windows(windows, CAP, micro_steps)
    for window, plan in zip(windows, plans, strict=True):
        assert (plan is not None) == best_fit_is_enough(window, micro_steps)
        assert plan is None or plan == plan_window(window, CAP, micro_steps)


def test_a_long_window_among_short_ones_is_left_for_later():
    plans = plan_easy_windows([[1] * 300, *[[20, 30]] * 32], CAP, 7)
    assert plans[0] is None
    assert plans[1:] == [plan_window([20, 30], CAP, 7)] * 32


def test_windows_for_which_this_is_slower_are_left_for_later():
    assert plan_easy_windows([[20, 30]] * 31, CAP, 7) == [None] * 31
    assert plan_easy_windows([[20, 30]] * 32, CAP, 65) == [None] * 32
    assert plan_easy_windows([[20, 30]] * 32, 1 << 57, 7) == [None] * 32
