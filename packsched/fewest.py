"""The tie-break of exact selection: the fewest segments with a given sum, then the smallest index set.

The longest segments say how many are needed at least; for that number, and the next, most segments can be
ruled out at once. Then one of five exact methods, each for the region where it is cheap:

- one, two or three segments by looking the complement up: `O(n)`, and what a large buffer needs;
- layers: a bitset of the sums of exactly k of the last segments, for k = 1, 2, ... until the sum appears;
- halves: the sums of up to three segments, tabulated and met in the middle, for sums of up to six;
- descent: taking the first segments for granted, for many segments a pack out of a large buffer;
- counting: a table of the fewest segments for every sum, when there may be hundreds of them.

All of them find the lexicographically smallest set from the front: a segment is taken when the segments after
it can still complete the sum with one fewer.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from math import comb, isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

# Layers cost (segments * layers * words of a bitset) word operations and as many words of memory.
_QUICK_LAYERS = 1 << 16
_MOST_LAYERS = 1 << 20
_MOST_FEW = 1 << 21
_MOST_HALVES = 50_000
_FEW = 40
_DESCENT_STEPS = 10_000


def fewest_segments(lengths: Sequence[int], total: int) -> list[int]:
    """Ascending positions of the fewest `lengths` that sum to `total`, lexicographically smallest set.

    Some subset must have that sum.
    """
    if len(lengths) < _FEW and len(lengths) ** 2 * ((total >> 6) + 1) <= _MOST_FEW:
        usable = [at for at, length in enumerate(lengths) if length <= total]
        few = by_layers([lengths[at] for at in usable], total, len(usable))
        return [usable[at] for at in few or []]
    descending = sorted(lengths, reverse=True)
    longest = 0
    at_least = 0
    while longest < total:
        longest += descending[at_least]
        at_least += 1
    for k in range(at_least, min(at_least + 2, len(lengths) + 1)):
        # A segment shorter than the k-th longest loses the difference, of which there is only the excess.
        shortest = descending[k - 1] - (longest - total)
        usable = [at for at, length in enumerate(lengths) if shortest <= length <= total]
        chosen = _exactly(k, [lengths[at] for at in usable], total, complete=len(usable) == len(lengths))
        if chosen is not None:
            return [usable[at] for at in chosen]
        longest += descending[k] if k < len(descending) else 0
    return by_counting(lengths, total)


def _exactly(k: int, lengths: list[int], total: int, *, complete: bool) -> list[int] | None:
    """The smallest set of exactly k positions with that sum, when fewer than k are known not to reach it.

    `complete`: no segment was ruled out, so a set of more than k is an answer too.
    """
    n = len(lengths)
    if n < k or sum(lengths) < total:
        return None
    if k <= 3 and n >= _FEW:
        return at_most_three(lengths, total, k)
    layers = n * (k - 1) * ((total >> 6) + 1)
    halves = k <= 6 and comb(n, k - k // 2) <= _MOST_HALVES
    if layers <= _QUICK_LAYERS or (layers <= _MOST_LAYERS and not halves):
        return by_layers(lengths, total, k)
    if halves:
        return by_halves(k, lengths, total)
    if k > 1:
        with suppress(_OutOfStepsError):
            return by_descent(k, lengths, total, _DESCENT_STEPS)
    chosen = by_counting(lengths, total)
    return chosen if complete or len(chosen) == k else None


def at_most_three(lengths: Sequence[int], total: int, most: int = 3) -> list[int] | None:
    """Up to `most` segments that sum to `total`: the fewest, then the smallest set; None if there are none.

    A pair is a dictionary look-up for each first segment. For a triple, the lengths as a bitset are laid over
    their mirror image, once for each first segment: a common bit is a pair with the rest of the sum.
    `O(n)` look-ups and `O(n * total / 64)` bit operations.
    """
    if total in lengths:
        return [lengths.index(total)]
    if most < 2:
        return None
    last = dict(zip(lengths, range(len(lengths)), strict=True))
    pair = _pair(lengths, total, 0, last)
    if pair is not None or most < 3:
        return pair
    marks = np.zeros(total + 1, dtype=np.uint8)
    marks[[length for length in last if length <= total]] = 1
    present = int.from_bytes(np.packbits(marks, bitorder="little").tobytes(), "little")
    mirror = int.from_bytes(np.packbits(marks[::-1], bitorder="little").tobytes(), "little")
    copies = Counter(lengths)
    for first, length in enumerate(lengths):
        rest = total - length
        both = present & mirror >> length
        if not both:
            continue
        # Neither half of the pair may be the first segment itself, nor one segment taken twice.
        if copies[length] == 1 and length < rest:
            both &= ~(1 << length | 1 << (rest - length))
        if rest > 0 and rest % 2 == 0 and copies[rest // 2] == 1:
            both &= ~(1 << rest // 2)
        pair = _pair(lengths, rest, first + 1, last) if both else None
        if pair is not None:
            return [first, *pair]
    return None


def _pair(lengths: Sequence[int], total: int, start: int, last: dict[int, int]) -> list[int] | None:
    for at in range(start, len(lengths)):
        partner = total - lengths[at]
        if last.get(partner, -1) > at:
            return [at, lengths.index(partner, at + 1)]
    return None


class _OutOfStepsError(Exception):
    pass


def by_descent(k: int, lengths: Sequence[int], total: int, steps: int) -> list[int] | None:
    """The smallest set of exactly k (at least 2) segments: the first ones taken for granted, the last pair looked up.

    In a large buffer nearly every prefix can be completed, so the search hardly ever turns back. `O(steps)`.

    Raises:
        _OutOfStepsError: Not found within so many segments looked at.
    """
    last = dict(zip(lengths, range(len(lengths)), strict=True))
    ascending = sorted(lengths)
    least = list(accumulate(ascending[: k - 1], initial=0))
    most = list(accumulate(ascending[:-k:-1], initial=0))

    def complete(start: int, count: int, rest: int) -> list[int] | None:
        nonlocal steps
        for at in range(start, len(lengths) - count + 1):
            steps -= 1
            if steps < 0:
                raise _OutOfStepsError
            left = rest - lengths[at]
            if count == 2:
                if last.get(left, -1) > at:
                    return [at, lengths.index(left, at + 1)]
            elif least[count - 1] <= left <= most[count - 1]:
                found = complete(at + 1, count - 1, left)
                if found is not None:
                    return [at, *found]
        return None

    return complete(0, k, total)


def by_layers(lengths: Sequence[int], total: int, most: int) -> list[int] | None:
    """The fewest segments, `most` or fewer, and the smallest set of them: `O(n * k * total / 64)`.

    `layers[j][i]` holds the sums of exactly j of the segments from i on, sum s as bit `total - s`.
    """
    n = len(lengths)
    layers = [[1 << total] * (n + 1)]
    for _ in range(most):
        below = layers[-1]
        if any(below[at + 1] >> length & 1 for at, length in enumerate(lengths)):
            break
        reach = 0
        layer = [0] * (n + 1)
        for at in range(n - 1, -1, -1):
            reach |= below[at + 1] >> lengths[at]
            layer[at] = reach
        layers.append(layer)
    else:
        return None
    chosen = []
    at_bit = at = 0
    for below in reversed(layers):
        # The next segment is the first whose successors can do the rest with one segment fewer.
        while not below[at + 1] >> (at_bit + lengths[at]) & 1:
            at += 1
        chosen.append(at)
        at_bit += lengths[at]
        at += 1
    return chosen


def by_halves(k: int, lengths: Sequence[int], total: int) -> list[int] | None:
    """The smallest set of exactly k segments, its first `k // 2` met by the others: `O(n^ceil(k / 2))`.

    Source: E. Horowitz and S. Sahni, "Computing partitions with applications to the knapsack problem",
    J. ACM 21 (1974).
    """
    values = np.array(lengths, dtype=np.int64)
    fronts, front_sums = _combinations(values, k // 2)
    backs, back_sums = _combinations(values, k - k // 2)
    # For every sum, the latest start of a back half with that sum (a later assignment overwrites).
    latest_start = np.full(total + 1, -1, dtype=np.int32)
    fits = back_sums <= total
    latest_start[back_sums[fits]] = backs[fits, 0]
    rest = total - front_sums
    met = (rest >= 0) & (latest_start[np.maximum(rest, 0)] > fronts[:, -1])
    front = int(met.argmax())
    if not met[front]:
        return None
    back = int(((back_sums == rest[front]) & (backs[:, 0] > fronts[front, -1])).argmax())
    return [*fronts[front].tolist(), *backs[back].tolist()]


def _combinations(values: npt.NDArray[np.int64], size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All index sets of that size in lexicographic order, one a row, and their sums."""
    n = len(values)
    sets = np.arange(n)[:, None]
    for _ in range(size - 1):
        followers = n - 1 - sets[:, -1]
        parent = np.repeat(np.arange(len(sets)), followers)
        nth = np.arange(len(parent)) - np.repeat(np.cumsum(followers) - followers, followers)
        sets = np.column_stack([sets[parent], sets[parent, -1] + 1 + nth])
    return sets, values[sets].sum(axis=1)


def by_counting(lengths: Sequence[int], total: int) -> list[int]:
    """The fewest segments by a table over all sums: `O(n * total)` byte operations.

    The table is kept at every `sqrt(n)`-th segment and filled again in between when the set is read.
    """
    n = len(lengths)
    most = min(n, total // min(lengths))
    kind = "u1" if most < 254 else "u2" if most < 65_534 else "u4"
    never = most + 1
    one = np.array(1, dtype=kind)

    def add(table: npt.NDArray[Any], length: int) -> None:
        if length <= total:
            np.minimum(table[length:], table[:-length] + one, out=table[length:])

    step = isqrt(n) + 1
    table = np.full(total + 1, never, dtype=kind)
    table[0] = 0
    kept = {n: table.copy()}
    for at in range(n - 1, -1, -1):
        add(table, lengths[at])
        if at % step == 0:
            kept[at] = table.copy()
    chosen: list[int] = []
    left, count = total, int(table[total])
    for start in range(0, n, step):
        end = min(start + step, n)
        table = kept[end]
        after = []
        for at in range(end - 1, start - 1, -1):
            after.append(table.copy())
            add(table, lengths[at])
        for at in range(start, end):
            rest = left - lengths[at]
            if rest >= 0 and int(after[end - 1 - at][rest]) == count - 1:
                chosen.append(at)
                left, count = rest, count - 1
            if count == 0:
                return chosen
    return chosen
