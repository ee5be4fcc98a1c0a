"""A fixed part of the sample of `python -m benchmarks.packsched.shapes`: nearly full windows of every shape."""

from collections import Counter

import pytest

from benchmarks.packsched.shapes import SHAPES, decide, report, shaped_windows
from packsched import UndecidedWindowError, plan_window
from tests.packsched.test_window import assert_is_a_plan


@pytest.fixture(scope="module")
def verdicts():
    return [decide(window) for window in shaped_windows(900, seed=20)]


def test_few_windows_of_any_shape_are_undecided(verdicts):
    """Before leveling and column generation: 4.8 %, of the real log's shape 11 %."""
    undecided = Counter(one.window.shape for one in verdicts if one.verdict == "undecided")
    assert undecided.total() <= 9
    assert undecided["the real log"] == 0
    assert {one.window.shape for one in verdicts} == set(SHAPES)
    found = Counter(one.verdict for one in verdicts)
    assert min(found["placed"], found["infeasible"]) > 150, found


def test_what_balanced_places_dense_places_too(verdicts):
    for one in verdicts:
        if one.verdict == "undecided":
            with pytest.raises(UndecidedWindowError):
                plan_window(one.window.lengths, one.window.packing_length, one.window.micro_steps, objective="balanced")


def test_plans_of_every_shape_are_plans():
    for window in shaped_windows(60, seed=21):
        one = decide(window)
        if one.verdict == "placed":
            plan = plan_window(window.lengths, window.packing_length, window.micro_steps)
            assert_is_a_plan(plan, window.lengths, window.packing_length, window.micro_steps)
            assert one.proven_fewest == plan.optimal


def test_the_report_has_a_line_for_each_shape_and_load(verdicts):
    text = report(verdicts[:60])
    assert text.startswith("`balanced` places 0 of the ")
    assert all(f"| {shape} | 4 |" in text for shape in SHAPES)
    assert text.count("\n| 0.9") == 5
