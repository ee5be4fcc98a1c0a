"""The selection rule, against the requirement's own pseudocode and brute force."""

import importlib.metadata
import itertools
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packsched import MissingBinpackingError, OversizedSegmentError, PackingError, select
from packsched import selection as selection_module

ROOT = Path(__file__).resolve().parents[2]
POLICIES = ["fifo", "binpacking", "optimal"]


@st.composite
def states(draw, max_size=24):
    """A buffer state: a cap and lengths that all fit it; short ranges make ties common."""
    cap = draw(st.integers(1, 60))
    longest = draw(st.integers(1, cap))
    return draw(st.lists(st.integers(1, longest), max_size=max_size)), cap


def document_001(encoded_lens, packing_length):
    """The pseudocode of the requirement, line by line: the oracle for policy `binpacking`."""
    if not encoded_lens:
        return []
    oldest_len = encoded_lens[0]
    if oldest_len > packing_length:
        raise ValueError
    baseline = [0]
    used = oldest_len
    for i in range(1, len(encoded_lens)):
        seg_len = int(encoded_lens[i])
        if seg_len <= 0:
            continue
        if used + seg_len <= packing_length:
            baseline.append(i)
            used += seg_len
    cap_rem = packing_length - oldest_len
    if cap_rem <= 0:
        return baseline
    import binpacking

    items = [(i, int(encoded_lens[i])) for i in range(1, len(encoded_lens)) if 0 < int(encoded_lens[i]) <= cap_rem]
    bins = binpacking.to_constant_volume(items, cap_rem, weight_pos=1) if items else []
    best_rest = []
    best_key = None
    for b in bins:
        rest = sorted(int(idx) for idx, _ in b)
        total = int(sum(int(encoded_lens[i]) for i in rest))
        key = (-total, len(rest), rest)
        if best_key is None or key < best_key:
            best_key = key
            best_rest = rest
    candidate = [0, *best_rest]
    candidate.sort()
    if sum(int(encoded_lens[i]) for i in candidate) > sum(int(encoded_lens[i]) for i in baseline):
        return candidate
    return baseline


def fifo_greedy(lens, cap):
    chosen, used = [], 0
    for index, length in enumerate(lens):
        if used + length <= cap:
            chosen, used = [*chosen, index], used + length
    return chosen


def total(lens, indices):
    return sum(lens[index] for index in indices)


def fullest(lens, cap):
    """Brute force: the largest total of a subset that holds the oldest segment and fits."""
    rest = range(1, len(lens))
    subsets = itertools.chain.from_iterable(itertools.combinations(rest, k) for k in range(len(lens)))
    return max(lens[0] + total(lens, subset) for subset in subsets if lens[0] + total(lens, subset) <= cap)


# --- The rule ---


@settings(max_examples=400)
@given(states())
def test_binpacking_is_the_algorithm_of_document_001(state):
    lens, cap = state
    assert select(lens, cap) == document_001(lens, cap)


@given(states())
def test_fifo_takes_what_fits_in_insertion_order(state):
    lens, cap = state
    assert select(lens, cap, policy="fifo") == fifo_greedy(lens, cap)


@pytest.mark.parametrize("policy", POLICIES)
@given(state=states())
def test_a_selection_holds_the_oldest_fits_the_cap_and_keeps_the_order(policy, state):
    lens, cap = state
    chosen = select(lens, cap, policy=policy)
    assert chosen[:1] == [0][: len(lens)]
    assert all(type(index) is int for index in chosen)
    assert chosen == sorted(set(chosen))
    assert total(lens, chosen) <= cap


@pytest.mark.parametrize("policy", POLICIES)
@given(state=states())
def test_no_selection_is_shorter_than_fifo(policy, state):
    lens, cap = state
    assert total(lens, select(lens, cap, policy=policy)) >= total(lens, fifo_greedy(lens, cap))


@given(states())
def test_fifo_wins_ties_against_binpacking(state):
    lens, cap = state
    chosen, baseline = select(lens, cap), fifo_greedy(lens, cap)
    if total(lens, chosen) == total(lens, baseline):
        assert chosen == baseline


@settings(max_examples=60)
@given(states(max_size=9))
def test_no_policy_beats_brute_force_and_optimal_reaches_it(state):
    lens, cap = state
    if lens:
        assert total(lens, select(lens, cap)) <= fullest(lens, cap)
        assert total(lens, select(lens, cap, policy="optimal")) == fullest(lens, cap)


@pytest.mark.parametrize("policy", POLICIES)
def test_an_empty_buffer_gives_an_empty_selection(policy):
    assert select([], 8, policy=policy) == []


@pytest.mark.parametrize("policy", POLICIES)
@given(state=states())
def test_arrays_and_lists_of_lengths_select_the_same(policy, state):
    lens, cap = state
    expected = select(lens, cap, policy=policy)
    assert select(np.array(lens, dtype=np.int64), np.int32(cap), policy=policy) == expected
    assert select(tuple(lens), cap, policy=policy) == expected


def test_equal_bins_prefer_fewer_segments_then_the_smallest_indices(monkeypatch):
    class Heuristic:
        bins = ()

        @classmethod
        def to_constant_volume(cls, items, cap, weight_pos):
            return [[item for item in items if item[0] in chosen] for chosen in cls.bins]

    monkeypatch.setattr(selection_module, "require_binpacking", lambda: Heuristic)
    lens = [1, 5, 2, 4, 6, 4, 2, 6]  # cap 9: FIFO takes 1 + 5 + 2 = 8, the bins below reach 9
    lens_of_two = ({3, 5}, {1, 2}, {2, 4}, {6, 7})
    Heuristic.bins = ({2, 3, 6}, *lens_of_two)  # 4+4=8, 2+6=8, 2+6=8 tie with 2+4+2=8
    for order in itertools.permutations(Heuristic.bins):
        Heuristic.bins = order
        assert select(lens, 9) == [0, 2, 4]


# --- Refusals ---


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_selection_checks_every_segment_again_not_only_the_oldest(policy, index):
    lens = [3, 3, 3]
    lens[index] = 10
    with pytest.raises(OversizedSegmentError, match=f"^segment {index} has encoded_len 10, which is 1 more"):
        select(lens, 9, policy=policy)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_non_positive_length_is_refused_and_never_skipped(policy):
    with pytest.raises(PackingError, match=r"^segment 1 has encoded_len 0;"):
        select([3, 0, 2], 9, policy=policy)


def test_an_unknown_policy_is_refused_with_the_known_ones():
    with pytest.raises(PackingError, match=r"^unknown policy 'best'; choose one of 'fifo', 'binpacking', 'optimal'\.$"):
        select([], 9, policy="best")


@pytest.mark.parametrize("cap", [0, -1, 2.5, True])
def test_a_cap_that_is_no_positive_integer_is_refused(cap):
    with pytest.raises(PackingError, match=r"^packing_length is "):
        select([1], cap)


def test_fifo_and_optimal_do_not_need_binpacking(monkeypatch):
    monkeypatch.setitem(sys.modules, "binpacking", None)
    assert select([4, 1, 5, 3], 9, policy="fifo") == [0, 1, 3]
    assert select([4, 1, 5, 3], 9, policy="optimal") == [0, 2]


def test_an_oldest_segment_that_fills_the_pack_asks_no_heuristic(monkeypatch):
    monkeypatch.setitem(sys.modules, "binpacking", None)
    assert select([9, 1, 2], 9) == [0]


@pytest.fixture
def installed(monkeypatch):
    """Pretends that another version of `binpacking` is installed (None: one that does not say)."""

    def pretend(version):
        def lookup(name):
            if version is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(importlib.metadata, "version", lookup)

    selection_module._installed_version.cache_clear()
    yield pretend
    selection_module._installed_version.cache_clear()


@pytest.mark.parametrize("version", ["1.5.2", "2.0.0", "3.0.0", "3.0.0rc1", "unheard-of", None])
def test_a_binpacking_that_decides_differently_is_refused(installed, version):
    installed(version)
    with pytest.raises(MissingBinpackingError) as caught:
        select([4, 1, 5, 3], 9)
    assert str(caught.value) == (
        "policy 'binpacking' needs binpacking >=2.0.1,<3, but the one installed is "
        f"{version or 'of unknown version'}; other versions select other segments. "
        "Install it (pip install 'binpacking>=2.0.1,<3') or ask for policy 'fifo' or 'optimal'."
    )


@pytest.mark.parametrize("version", ["2.0.1", "2.1", "2.10.3", "2.0.2.post1"])
def test_a_binpacking_inside_the_declared_range_is_accepted(installed, version):
    installed(version)
    assert select([4, 1, 5, 3], 9) == [0, 2]


def test_the_range_checked_at_run_time_is_the_one_that_is_declared():
    declared = (ROOT / "pyproject.toml").read_text()
    assert f'"binpacking{selection_module._REQUIREMENT}"' in declared


# --- The scenarios of document 002 ---


@given(states())
def test_scenario_multiple_short_segments_pack_efficiently_under_the_cap(state):
    lens, cap = state
    cap += 1  # every segment is shorter than the cap
    if len(lens) > 1:
        chosen = select(lens, cap)
        assert total(lens, chosen) <= cap
        assert 0 in chosen
        assert total(lens, chosen) / cap >= total(lens, fifo_greedy(lens, cap)) / cap


def test_short_segments_pack_strictly_better_than_fifo_where_they_can():
    lens = [4, 1, 5, 3]
    assert total(lens, fifo_greedy(lens, 9)) == 8
    assert total(lens, select(lens, 9)) == 9


@given(states())
def test_scenario_deterministic_selection(state):
    lens, cap = state
    assert select(lens, cap) == select(list(lens), cap)


def test_scenario_oversized_segment_fails_fast():
    with pytest.raises(OversizedSegmentError) as caught:
        select([3, 12], 9)
    assert str(caught.value) == (
        "segment 1 has encoded_len 12, which is 3 more than packing_length 9. "
        "Raise packing_length or make shorter segments; they are never split."
    )


def test_scenario_missing_binpacking_dependency_fails_fast(monkeypatch):
    monkeypatch.setitem(sys.modules, "binpacking", None)
    with pytest.raises(MissingBinpackingError) as caught:
        select([4, 1, 5, 3], 9)
    message = str(caught.value)
    assert message.startswith("policy 'binpacking' needs the module binpacking, which fails to import (")
    assert message.endswith("Install it (pip install 'binpacking>=2.0.1,<3') or ask for policy 'fifo' or 'optimal'.")
    assert (caught.value.name, caught.value.installed) == ("binpacking", None)


def test_optimal_takes_everything_that_fits_at_any_cap():
    for cap in (10**9, 10**12, 2**63):
        assert select([5, 3, 7], cap, policy="optimal") == [0, 1, 2]


def test_optimal_counts_in_units_of_all_segments_but_the_oldest():
    rng = random.Random(9)
    for _ in range(300):
        unit = rng.choice((2, 7, 1000))
        first, cap = rng.randint(1, 40), rng.randint(41, 200)
        lens = [rng.randint(1, 160) for _ in range(rng.randint(1, 90))]
        room = (cap - first) // unit
        scaled = [first, *(unit * length for length in lens if length <= room)]
        plain = [1, *(length for length in lens if length <= room)]
        assert select(scaled, cap, policy="optimal") == select(plain, room + 1, policy="optimal")
    # 10^12 tokens are ten units here.
    giga = 10**11
    assert select([giga, 6 * giga, 5 * giga, 4 * giga], 10 * giga, policy="optimal") == [0, 2, 3]
