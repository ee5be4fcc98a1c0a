"""Exact selection: the largest total with the oldest pinned, and its tie-breaks, against two independent oracles."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packsched import fewest, subset_sum
from packsched.subset_sum import fill_room, largest_sum, select_optimal


def fifo_pick(lens: list[int], cap: int) -> list[int]:
    chosen, free = [], cap
    for index, length in enumerate(lens):
        if length <= free:
            chosen.append(index)
            free -= length
    return chosen


def by_trying_every_subset(lens: list[int], cap: int) -> list[int]:
    best = None
    for size in range(len(lens)):
        for rest in itertools.combinations(range(1, len(lens)), size):
            total = lens[0] + sum(lens[index] for index in rest)
            key = (-total, size, rest)
            if total <= cap and (best is None or key < best):
                best = key
    assert best is not None
    fifo = fifo_pick(lens, cap)
    return fifo if sum(lens[index] for index in fifo) == -best[0] else [0, *best[2]]


def by_full_table(lens: list[int], cap: int) -> list[int]:
    """fewest[i, s]: the fewest of the segments from i on that sum to s, every cell of it."""
    n, room, never = len(lens), cap - lens[0], 10**6
    table = np.full((n + 1, room + 1), never)
    table[n, 0] = 0
    for at in range(n - 1, 0, -1):
        table[at] = table[at + 1]
        if lens[at] <= room:
            shifted = table[at + 1, : room + 1 - lens[at]] + 1
            table[at, lens[at] :] = np.minimum(table[at, lens[at] :], shifted)
    best = max(s for s in range(room + 1) if table[1, s] < never)
    fifo = fifo_pick(lens, cap)
    if sum(lens[index] for index in fifo) == lens[0] + best:
        return fifo
    chosen = [0]
    for at in range(1, n):
        if best >= lens[at] and table[at + 1, best - lens[at]] == table[at:, best].min() - 1:
            chosen.append(at)
            best -= lens[at]
    return chosen


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


@pytest.fixture(params=["as shipped", "lookups", "halves", "descent", "counting", "layers"])
def method(request, monkeypatch):
    """The same question through each exact method alone, by moving the limits that choose between them.

    A descent that gives up leaves the question to counting.
    """
    if request.param == "as shipped":
        return
    monkeypatch.setattr(subset_sum, "_MANY", 1 if request.param == "lookups" else 10**9)
    monkeypatch.setattr(fewest, "_FEW", 10**9 if request.param == "layers" else 1)
    monkeypatch.setattr(fewest, "_QUICK_LAYERS", 0)
    monkeypatch.setattr(fewest, "_MOST_LAYERS", 0)
    if request.param in ("descent", "counting"):
        monkeypatch.setattr(fewest, "_MOST_HALVES", 0)
    if request.param == "counting":
        monkeypatch.setattr(fewest, "_DESCENT_STEPS", 0)


def test_agrees_with_every_subset_tried(method):
    rng = random.Random(20)
    for _ in range(1200):
        cap = rng.choice((7, 13, 30, 60, 400))
        lens = [min(cap, length) for length in adversarial(rng, rng.randint(1, 9), cap)]
        assert select_optimal(lens, cap) == by_trying_every_subset(lens, cap), (lens, cap)


def test_agrees_with_every_subset_tried_up_to_twelve_segments():
    rng = random.Random(21)
    for _ in range(60):
        cap = rng.choice((30, 60, 400))
        lens = [min(cap, length) for length in adversarial(rng, 12, cap)]
        assert select_optimal(lens, cap) == by_trying_every_subset(lens, cap), (lens, cap)


def test_agrees_with_the_full_table_up_to_four_hundred_segments():
    rng = random.Random(22)
    for _ in range(120):
        n = rng.choice((30, 45, 70, 120, 250, 400))
        cap = rng.choice((100, 500, 1900))
        lens = [min(cap, length) for length in adversarial(rng, n, cap)]
        assert select_optimal(lens, cap) == by_full_table(lens, cap), (lens, cap)


def test_hundreds_of_segments_in_one_pack():
    rng = random.Random(23)
    lens = [3] + [rng.randint(4, 9) for _ in range(600)]
    assert select_optimal(lens, 3001) == by_full_table(lens, 3001)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=80), st.integers(300, 2000))
def test_the_pack_is_legal_and_never_below_fifo(lens, cap):
    chosen = select_optimal(lens, cap)
    total = sum(lens[index] for index in chosen)
    assert chosen == sorted(set(chosen))
    assert chosen[0] == 0
    assert sum(lens[index] for index in fifo_pick(lens, cap)) <= total <= cap


def test_an_empty_buffer_gives_an_empty_pack():
    assert select_optimal([], 10) == []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=40), st.integers(0, 300))
def test_filling_a_room_reaches_the_largest_sum(lengths, room):
    chosen = fill_room(lengths, room)
    reachable = {0}
    for length in lengths:
        reachable |= {total + length for total in reachable if total + length <= room}
    assert chosen == sorted(set(chosen))
    assert sum(lengths[at] for at in chosen) == max(reachable) == largest_sum(lengths, room)


@pytest.mark.parametrize("exactly", [fewest.by_halves, lambda k, lengths, total: fewest.by_layers(lengths, total, k)])
def test_exactly_k_segments_are_the_smallest_set_of_that_size(exactly):
    rng = random.Random(24)
    found = 0
    for _ in range(400):
        lengths = [rng.randint(1, 12) for _ in range(rng.randint(4, 9))]
        total = rng.randint(4, 40)
        sizes = [
            (size, chosen)
            for size in range(1, len(lengths) + 1)
            for chosen in itertools.combinations(range(len(lengths)), size)
            if sum(lengths[at] for at in chosen) == total
        ]
        if not sizes or not 2 <= min(sizes)[0] <= 6:
            continue
        k, smallest = min(sizes)
        assert exactly(k, lengths, total) == list(smallest), (lengths, total)
        assert exactly(k - 1, lengths, total) is None or k == 2
        found += k >= 4
    assert found > 40


def test_a_descent_gives_up_after_so_many_steps():
    rng = random.Random(30)
    lengths = [rng.randint(400, 900) for _ in range(300)]
    total = sum(sorted(lengths)[100:120])
    with pytest.raises(fewest._OutOfStepsError):
        fewest.by_descent(20, lengths, total, 19)
    found = fewest.by_descent(20, lengths, total, 10**6)
    assert found is not None
    assert sum(lengths[at] for at in found) == total
    assert fewest.by_descent(2, [2, 4, 6], 7, 100) is None
