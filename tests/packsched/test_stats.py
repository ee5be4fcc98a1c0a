"""Statistics stay correct when merged, and cannot be made to flatter."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packsched import FillStats, PackingError, plan_window, select

CAP = 20
windows = st.lists(st.integers(0, CAP), max_size=6)


def stats_of(pack_lens, **overrides):
    return FillStats.from_packs(pack_lens, CAP, **{"segments": len(pack_lens), **overrides})


def test_the_metrics_of_one_window_are_plain_ratios():
    stats = FillStats.from_packs([9, 3, 0, 0], 10, segments=5, lower_bound=2)
    assert stats.metrics() == {
        "fill": 12 / 40,
        "fill_non_empty": 12 / 20,
        "min_fill": 3 / 10,
        "non_empty_packs": 2,
        "lower_bound": 2,
        "segments": 5,
    }


@given(st.lists(windows, min_size=1, max_size=5))
def test_merging_equals_counting_everything_at_once(many):
    merged = FillStats()
    for pack_lens in many:
        merged = merged.merge(stats_of(pack_lens))
    every = [length for pack_lens in many for length in pack_lens]
    full = [length for length in every if length]
    metrics = merged.metrics()
    assert metrics["fill"] == (sum(every) / (len(every) * CAP) if every else 0)
    assert metrics["fill_non_empty"] == (sum(full) / (len(full) * CAP) if full else 0)
    assert metrics["min_fill"] == (min(full) / CAP if full else 0)
    assert metrics["non_empty_packs"] == len(full) / len(many)
    assert metrics["segments"] == len(every) / len(many)
    assert metrics["lower_bound"] == sum(-(-sum(p) // CAP) for p in many) / len(many)


@given(windows, windows, windows)
def test_merging_is_associative_and_commutative_with_a_neutral_element(one, two, three):
    a, b, c = stats_of(one), stats_of(two), stats_of(three)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(b) == b.merge(a)
    assert a.merge(FillStats()) == a == FillStats().merge(a)


@given(windows, windows)
def test_a_reduction_over_plain_numbers_equals_a_merge(one, two):
    a, b = stats_of(one).as_dict(), stats_of(two).as_dict()
    reduced = {name: float(min(a[name], b[name]) if name == "min_fill" else a[name] + b[name]) for name in a}
    assert FillStats.from_dict(reduced) == stats_of(one).merge(stats_of(two))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 2.5}, r"^tokens is 2\.5; it counts something, so it must be a whole number of at least 0\. Add"),
        ({"segments": -1}, r"^segments is -1; "),
        ({"windows": float("nan")}, r"^windows is nan; "),
        ({"capacity": float("inf")}, r"^capacity is inf; "),
        ({"min_fill": 1.5}, r"^min_fill is 1\.5; it is a share of a pack, from 0 to 1\.$"),
        ({"packs": 3}, r"^the numbers are named \['capacity', .*'packs'.*\] instead of \["),
    ],
)
def test_averaged_or_damaged_statistics_are_refused(change, message):
    with pytest.raises(PackingError, match=message):
        FillStats.from_dict({**stats_of([3, 4]).as_dict(), **change})


@given(windows)
def test_statistics_travel_as_json(pack_lens):
    stats = stats_of(pack_lens)
    assert FillStats.from_dict(json.loads(json.dumps(stats.as_dict()))) == stats


@given(st.lists(st.integers(1, CAP), max_size=6))
def test_fill_over_all_packs_depends_on_the_tokens_alone(lens):
    """Conservation: no packing of the same window can report a better fill over all its micro-steps."""
    dense = plan_window(lens, CAP, 6)
    one_by_one = lens + [0] * (6 - len(lens))
    fills = {stats_of(pack_lens).metrics()["fill"] for pack_lens in (dense.pack_lens, one_by_one)}
    assert len(fills) == 1


def test_idle_micro_steps_lower_the_fill_and_do_not_hide_a_thin_pack():
    busy, idle = stats_of([CAP, CAP]).metrics(), stats_of([CAP, CAP, 0, 0]).metrics()
    assert busy["fill"] == 1.0
    assert idle["fill"] == 0.5
    assert idle["fill_non_empty"] == 1.0
    thin = stats_of([CAP, 1, 0]).merge(stats_of([CAP]))
    assert thin.metrics()["min_fill"] == 1 / CAP


@pytest.mark.parametrize("stats", [FillStats(), FillStats.from_packs([0, 0], CAP, segments=0)])
def test_where_nothing_was_packed_every_number_is_zero(stats):
    assert set(stats.metrics().values()) == {0}


def test_a_window_without_segments_does_not_change_the_least_fill():
    merged = stats_of([0, 0]).merge(stats_of([10]))
    assert merged.metrics()["min_fill"] == 0.5


@pytest.mark.parametrize(
    ("pack_lens", "options", "message"),
    [
        (
            [3, 25],
            {},
            r"^pack 1 has 25 tokens, which is 5 more than packing_length 20; a pack never exceeds its cap, "
            r"so check that padding is left out\.$",
        ),
        ([3, -1], {}, r"^pack_lens\[1\] is -1; it must be at least 0\.$"),
        ([3.5], {}, r"^pack_lens\[0\] is 3\.5 of type float; it must be an integer\.$"),
        ([3], {"segments": -1}, r"^segments is -1; it must be at least 0\.$"),
        ([3], {"lower_bound": 0.5}, r"^lower_bound is 0\.5 of type float; it must be an integer\.$"),
    ],
)
def test_numbers_that_cannot_be_are_refused(pack_lens, options, message):
    with pytest.raises(PackingError, match=message):
        stats_of(pack_lens, **options)


def test_a_plan_and_a_selection_can_be_counted():
    plan = plan_window([6, 5, 3], 9, 3)
    stats = FillStats.from_packs(plan.pack_lens, 9, segments=3, lower_bound=plan.lower_bound)
    assert stats.metrics()["non_empty_packs"] == stats.metrics()["lower_bound"] == 2
    lens = [4, 1, 5, 3]
    chosen = select(lens, 9)
    popped = FillStats.from_packs([sum(lens[i] for i in chosen)], 9, segments=len(chosen))
    assert popped.metrics()["fill"] == 1.0
