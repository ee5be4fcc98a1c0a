"""Fills a room with segments as fully as possible, by subset sums with Python integers as bitsets.

- Bit `s` of a bitset is set when some subset has sum `s`. A segment is added with one shift, one or, and one mask that
  cuts off sums over the room. The highest bit is the largest sum; the search ends when it equals the room.
- The bitset before each segment is kept. A bisection finds the last segment of the subset: the first one whose
  addition made the sum reachable. The rest of the sum is then found among the segments before it.

A room of 16384 tokens is a 2 KiB integer, so a segment costs a fraction of a microsecond, and realistic lengths give
an exact fit after about twenty segments. Source: Bellman 1957; Pisinger, "Dynamic programming on the word RAM" (2003).
"""

from bisect import bisect_left
from collections.abc import Sequence
from math import isqrt

# All bitsets are kept while they take at most 16 MiB.
_MOST_HISTORY_BITS = 1 << 27


def fill_room(lengths: Sequence[int], room: int, enough: int = 0) -> list[int]:
    """Returns the positions (ascending) of a subset with the largest sum that is at most `room`.

    Segments are tried in the given order and the search ends at the first subset that leaves at most `enough` of
    the room. Among the subsets with that sum it is the colexicographically smallest: its last segment is as early in
    the order as possible, then the one before it, and so on.

    Cost: `O(n * room / 64)` time. Memory: see `history_bytes`.

    >>> fill_room([4, 2, 5, 3, 6], 9)
    [0, 2]
    """
    if room <= enough:
        return []
    n = len(lengths)
    step = _kept_every(n, room)
    full = (2 << room) - 1
    starts: list[int] = []
    history: list[int] = []
    reach = 1
    for start in range(0, n, step):
        starts.append(reach)
        history = []
        for length in lengths[start : start + step]:
            history.append(reach)
            if length <= room:
                reach = (reach | reach << length) & full
                if reach.bit_length() > room - enough:
                    break
        else:
            continue
        break
    total = reach.bit_length() - 1
    chosen: list[int] = []
    for block in range(len(starts) - 1, -1, -1):
        if starts[block] >> total & 1:
            continue
        if block < len(starts) - 1:
            history = _history(starts[block], lengths[block * step : (block + 1) * step], room)
        end = len(history)
        while not starts[block] >> total & 1:
            # Where most of the segments are selected, the next one is usually the neighbour.
            end -= 1
            if history[end] >> total & 1:
                end = bisect_left(history, 1, hi=end, key=lambda reach: reach >> total & 1) - 1
            chosen.append(block * step + end)
            total -= lengths[block * step + end]
    return chosen[::-1]


def leave_out(lengths: Sequence[int], excess: int, most: int) -> set[int] | None:
    """Returns the positions of a subset with the smallest sum from `excess` to `most`, or None if there is none.

    Among the subsets with that sum it is the colexicographically largest, so those that stay are the smallest: what
    `fill_room` would select, found from the other side.

    Cost: `O(n * most / 64)` time, `n * most / 8` bytes.

    >>> sorted(leave_out([4, 2, 5, 3, 6], 11, 20))
    [1, 3, 4]
    """
    full = (2 << most) - 1
    history: list[int] = []
    reach = 1
    for length in lengths:
        history.append(reach)
        if length <= most:
            reach = (reach | reach << length) & full
    above = reach >> excess
    if not above:
        return None
    total = excess + (above & -above).bit_length() - 1
    left_out: set[int] = set()
    for at in range(len(lengths) - 1, -1, -1):
        rest = total - lengths[at]
        if rest >= 0 and history[at] >> rest & 1:
            left_out.add(at)
            total = rest
    return left_out


def keeps_whole_history(n: int, room: int) -> bool:
    """Returns whether one bitset for each of n segments takes at most 16 MiB. O(1)."""
    return n * room <= _MOST_HISTORY_BITS


def history_bytes(n: int, room: int) -> int:
    """Returns an upper bound of the memory that `fill_room` needs for n segments. O(1).

    It keeps a bitset of `room / 8` bytes for each segment while all of them take at most 16 MiB. Otherwise it keeps one
    for every `sqrt(n)`-th segment, and computes those in between again when it reads the subset back.
    """
    step = _kept_every(n, room)
    return (-(-n // step) + min(step, n)) * (room // 8 + 1)


def _kept_every(n: int, room: int) -> int:
    return max(1, n if keeps_whole_history(n, room) else isqrt(n) + 1)


def _history(reach: int, lengths: Sequence[int], room: int) -> list[int]:
    """Returns the bitset before each of the segments."""
    full = (2 << room) - 1
    history = [reach]
    for length in lengths[:-1]:
        if length <= room:
            reach = (reach | reach << length) & full
        history.append(reach)
    return history
