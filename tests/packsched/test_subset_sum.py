"""Exact selection: the largest total with the oldest pinned, and its tie-break, against two independent oracles."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packsched import PackingError, select, selection, subset_sum
from packsched.subset_sum import fill_room, history_bytes, leave_out


def select_optimal(lens: list[int], cap: int) -> list[int]:
    return select(lens, cap, policy="optimal")


def fifo_pick(lens: list[int], cap: int) -> list[int]:
    chosen, free = [], cap
    for index, length in enumerate(lens):
        if length <= free:
            chosen.append(index)
            free -= length
    return chosen


def newest_first(indices: list[int]) -> list[int]:
    """The colexicographic order: the newest segment decides, then the next newest."""
    return sorted(indices, reverse=True)


def by_trying_every_subset(lens: list[int], cap: int) -> list[int]:
    rest = range(1, len(lens))
    subsets = [[0, *some] for size in range(len(lens)) for some in itertools.combinations(rest, size)]
    totals = {tuple(subset): sum(lens[index] for index in subset) for subset in subsets}
    best = max(total for total in totals.values() if total <= cap)
    fifo = fifo_pick(lens, cap)
    if totals[tuple(fifo)] == best:
        return fifo
    return min((subset for subset in subsets if totals[tuple(subset)] == best), key=newest_first)


def by_full_table(lens: list[int], cap: int) -> list[int]:
    """first[s]: how many of the segments behind the oldest it takes until some of them sum to s, for every s."""
    room, never = cap - lens[0], 10**6
    first = np.full(room + 1, never)
    first[0] = 0
    for at, length in enumerate(lens[1:], start=1):
        if length <= room:
            reached = np.concatenate([np.full(length, never), first[: room + 1 - length]]) < never
            first[reached & (first == never)] = at
    total = int(np.flatnonzero(first < never).max())
    fifo = fifo_pick(lens, cap)
    if sum(lens[index] for index in fifo) == lens[0] + total:
        return fifo
    chosen = []
    while total:
        chosen.append(int(first[total]))
        total -= lens[chosen[-1]]
    return [0, *chosen[::-1]]


def adversarial(rng: random.Random, n: int, cap: int) -> list[int]:
    kind = rng.randrange(6)
    if kind == 0:
        return [rng.randint(1, cap) for _ in range(n)]
    if kind == 1:
        return [rng.choice((cap // 3, cap // 3 + 1, cap // 4 + 1)) or 1 for _ in range(n)]
    if kind == 2:
        return [max(1, 2 * rng.randint(1, max(1, cap // 4))) for _ in range(n)]
    if kind == 3:
        return [rng.randint(1, max(1, cap // 8)) for _ in range(n)]
    if kind == 4:
        return [1 + (8 * rng.randint(0, max(0, (cap - 1) // 16)) if rng.random() < 0.7 else 0) for _ in range(n)]
    return [rng.randint(max(1, cap // 3), max(1, cap // 2)) for _ in range(n)]


def cases(seed: int, count: int, sizes: tuple[int, ...], caps: tuple[int, ...]):
    rng = random.Random(seed)
    for _ in range(count):
        cap = rng.choice(caps)
        yield [min(cap, length) for length in adversarial(rng, rng.choice(sizes), cap)], cap


def test_agrees_with_every_subset_tried():
    ties = 0
    for lens, cap in cases(20, 1200, tuple(range(1, 10)), (7, 13, 30, 60, 400)):
        chosen = by_trying_every_subset(lens, cap)
        assert select_optimal(lens, cap) == chosen, (lens, cap)
        ties += chosen != fifo_pick(lens, cap)
    assert ties > 100


def test_agrees_with_every_subset_tried_up_to_twelve_segments():
    for lens, cap in cases(21, 60, (12,), (30, 60, 400)):
        assert select_optimal(lens, cap) == by_trying_every_subset(lens, cap), (lens, cap)


@pytest.mark.parametrize("kept_bits", [1 << 27, 0])
def test_agrees_with_the_full_table_up_to_four_hundred_segments(kept_bits, monkeypatch):
    monkeypatch.setattr(subset_sum, "_MOST_HISTORY_BITS", kept_bits)
    for lens, cap in cases(22, 120, (30, 45, 70, 120, 250, 400), (100, 500, 1900)):
        assert select_optimal(lens, cap) == by_full_table(lens, cap), (lens, cap)


def test_nearly_full_buffers_agree_with_the_full_table(monkeypatch):
    left_out = []
    monkeypatch.setattr(selection, "leave_out", lambda *args: left_out.append(leave_out(*args)) or left_out[-1])
    rng = random.Random(24)
    for _ in range(300):
        lens = [rng.choice((1, 2, 3)) * rng.randint(20, 90) for _ in range(rng.randint(5, 40))]
        cap = max(max(lens), sum(lens) - rng.randint(1, 100))
        assert select_optimal(lens, cap) == by_full_table(lens, cap), (lens, cap)
    assert sum(found is not None for found in left_out) > 100
    assert sum(found is None for found in left_out) > 10


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=10), st.integers(0, 60), st.integers(0, 60))
def test_the_least_that_can_be_left_out_is(lengths, excess, spare):
    most = excess + spare
    subsets = [
        set(some) for size in range(len(lengths) + 1) for some in itertools.combinations(range(len(lengths)), size)
    ]
    totals = [sum(lengths[at] for at in subset) for subset in subsets]
    allowed = [total for total in totals if excess <= total <= most]
    found = leave_out(lengths, excess, most)
    if not allowed:
        assert found is None
    else:
        fewest = [subset for subset, total in zip(subsets, totals, strict=True) if total == min(allowed)]
        assert found == max(fewest, key=newest_first)


def test_hundreds_of_segments_in_one_pack():
    rng = random.Random(23)
    lens = [3] + [rng.randint(4, 9) for _ in range(600)]
    assert select_optimal(lens, 3001) == by_full_table(lens, 3001)


def test_fifo_wins_when_it_reaches_the_total():
    # Beside the oldest, 1 + 4 + 1 and 4 + 2 are both full; the second ends one segment earlier.
    assert select_optimal([1, 1, 4, 2, 1], 7) == [0, 1, 2, 4]


def test_the_newest_segment_of_the_pack_is_as_old_as_possible():
    # FIFO stops at 7 of 8 tokens. Both 4 + 3 and 7 fill the pack; the second is fewer segments, but newer.
    assert fifo_pick([1, 6, 4, 3, 7], 8) == [0, 1]
    assert select_optimal([1, 6, 4, 3, 7], 8) == [0, 2, 3]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=80), st.integers(300, 2000))
def test_the_pack_is_legal_and_never_below_fifo(lens, cap):
    chosen = select_optimal(lens, cap)
    total = sum(lens[index] for index in chosen)
    assert chosen == sorted(set(chosen))
    assert chosen[0] == 0
    assert sum(lens[index] for index in fifo_pick(lens, cap)) <= total <= cap


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=40), st.integers(0, 300))
def test_filling_a_room_reaches_the_largest_sum(lengths, room):
    chosen = fill_room(lengths, room)
    reachable = {0}
    for length in lengths:
        reachable |= {total + length for total in reachable if total + length <= room}
    assert chosen == sorted(set(chosen))
    assert sum(lengths[at] for at in chosen) == max(reachable)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=30), st.integers(0, 300), st.integers(0, 20))
def test_a_fill_ends_at_the_first_subset_that_is_full_enough(lengths, room, enough):
    chosen = fill_room(lengths, room, enough)
    used = sum(lengths[at] for at in chosen)
    if room <= enough:
        assert chosen == []
    elif used < room - enough:
        assert used == sum(lengths[at] for at in fill_room(lengths, room))
    elif chosen:
        before = fill_room(lengths[: chosen[-1]], room)
        assert sum(lengths[at] for at in before) < room - enough


def test_the_memory_of_a_fill_is_what_was_promised():
    assert history_bytes(16, 16384) == 17 * 2049
    assert history_bytes(4096, 16384) <= 1 << 24
    for n, room in ((10_000, 131_072), (4096, 10**6), (10**6, 16384)):
        assert history_bytes(n, room) <= 2.1 * (n**0.5 + 1) * (room // 8 + 1)


def test_lengths_that_need_too_much_memory_are_refused_with_numbers():
    giga = 10**11
    message = r"would need \d{12} bytes for 4 segments and packing_length 1000000000000, more than 2147483648\. Use"
    with pytest.raises(PackingError, match=message):
        select_optimal([giga, 6 * giga, 5 * giga + 1, 4 * giga], 10 * giga)
