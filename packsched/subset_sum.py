"""Exact subset sums with Python integers as bitsets, and the exact selection built on them.

Bit `room - s` of a bitset says that some subset has sum `s`: adding a segment is one shift and one or, sums
over the room fall off the end, and bit 0 is an exact fit. A room of 16384 tokens is a 2 KiB integer, so a
segment costs a fraction of a microsecond, and realistic lengths give an exact fit after some twenty of them.
"""

from collections.abc import Sequence
from math import gcd, isqrt

from packsched.errors import PackingError
from packsched.fewest import at_most_three, fewest_segments

# Below this many segments pairs and triples seldom fit exactly, so looking for them first is wasted.
_MANY = 64
_MOST_HISTORY_BITS = 1 << 27
_MOST_BYTES = 1 << 31


def select_optimal(encoded_lens: Sequence[int], packing_length: int) -> list[int]:
    """The fullest pack that contains the oldest segment: ascending indices, `[]` for an empty buffer.

    The total is the largest there is. FIFO-greedy's pick wins when it reaches that total; otherwise the
    fewest segments win, then the lexicographically smallest index set.

    Args:
        encoded_lens: Positive lengths in tokens in insertion order, the first not above `packing_length`.
        packing_length: The cap of the pack in tokens.

    Cost: `O(n * packing_length / 64)` for the total. The tie-break is `O(n)` when two or three segments do,
    the common case of a large buffer, and `O(n * packing_length)` byte operations at worst. Memory: at most
    16 MiB, or `2 * sqrt(n) * packing_length` bytes where that is more (twice that from 254 segments a pack); in
    units of the segments' common divisor, and nothing where all segments fit together.

    Raises:
        PackingError: That would be more than 2 GiB.

    >>> select_optimal([4, 5, 3, 3, 6], 10)
    [0, 4]
    """
    if not encoded_lens:
        return []
    room = packing_length - encoded_lens[0]
    fifo, free = [0], room
    shortest = min(encoded_lens)
    for index, length in enumerate(encoded_lens):
        if length <= free and index:
            fifo.append(index)
            free -= length
            if free < shortest:
                break
    if free == 0 or len(fifo) == len(encoded_lens):
        return fifo
    others = encoded_lens[1:]
    used = room - free
    if gcd(*others[:4]) > 1:
        unit = gcd(*others)
        others = [length // unit for length in others]
        room, used = room // unit, used // unit
        if used == room:
            return fifo
    if 2 * isqrt(len(others)) * room > _MOST_BYTES:
        raise PackingError(
            f"policy 'optimal' would need {2 * isqrt(len(others)) * room} bytes for {len(encoded_lens)} segments and "
            f"packing_length {packing_length}, more than {_MOST_BYTES}. Use policy 'binpacking', or lengths in larger "
            "units."
        )
    if len(others) >= _MANY and 3 * max(others) >= room:
        chosen = at_most_three(others, room)
        if chosen is not None:
            return [0] + [at + 1 for at in chosen]
    best = largest_sum(others, room)
    if best == used:
        return fifo
    return [0] + [at + 1 for at in fewest_segments(others, best)]


def largest_sum(lengths: Sequence[int], room: int) -> int:
    """The largest sum of a subset that is at most `room`. `O(n * room / 64)`, less when one fits exactly."""
    reach = 1 << room
    for length in lengths:
        reach |= reach >> length
        if reach & 1:
            return room
    return room + 1 - (reach & -reach).bit_length()


def fill_room(lengths: Sequence[int], room: int, enough: int = 0) -> list[int]:
    """Positions (ascending) of a subset with the largest sum that is at most `room`.

    Segments are tried in the given order and the search ends at the first subset that leaves at most `enough` of
    the room, so segments early in the order are preferred. `O(n * room / 64)` time. Memory: a bitset of room / 8
    bytes for every segment tried, up to 16 MiB; beyond that only every `sqrt(n)`-th is kept, and those in between
    are computed again when the subset is read back.
    """
    if room <= enough:
        return []
    n = len(lengths)
    step = max(1, n if n * room <= _MOST_HISTORY_BITS else isqrt(n) + 1)
    near = (1 << enough + 1) - 1
    starts: list[int] = []
    history: list[int] = []
    reach = 1 << room
    for start in range(0, n, step):
        starts.append(reach)
        history = []
        for length in lengths[start : start + step]:
            history.append(reach)
            reach |= reach >> length
            if reach & near:
                break
        else:
            continue
        break
    at_bit = (reach & -reach).bit_length() - 1
    chosen: list[int] = []
    for block in range(len(starts) - 1, -1, -1):
        if block < len(starts) - 1:
            history = [starts[block]]
            for length in lengths[block * step : (block + 1) * step - 1]:
                history.append(history[-1] | history[-1] >> length)
        for inside in range(len(history) - 1, -1, -1):
            # The segment is needed when the sum was out of reach before it.
            if not history[inside] >> at_bit & 1:
                position = block * step + inside
                chosen.append(position)
                at_bit += lengths[position]
    return chosen[::-1]
