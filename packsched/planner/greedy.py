"""Packs by best fit, first fit and longest-processing-time: the first attempt at every window, good enough for most.

All take the longest segment first. Best fit puts each segment into the fullest pack that still has room, and opens a
pack when none has room. It never needs more than 11/9 of the fewest packs plus 6/9, and on ordinary windows it needs
no pack too many. First fit takes the oldest pack with room; it is seldom better, and runs only for windows that are too
large to search. Longest processing time puts each segment into the emptiest of a fixed number of packs; its longest
pack is at most 4/3 of the shortest possible.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from heapq import heappop, heappush, heapreplace

# Rooms are kept sorted in bands of the packing length, so that no list grows beyond a few hundred.
_SEGMENTS_PER_BAND = 1024


def best_fit_decreasing(lengths: Sequence[int], packing_length: int) -> list[list[int]]:
    """Packs the positions in `lengths` (longest first, none over `packing_length`); of equal rooms, the oldest pack.

    Cost: `O(n log n)`; 100,000 segments take a fifth of a second.

    Source: D. S. Johnson, "Near-optimal bin packing algorithms", thesis, MIT 1973; the bound: G. Dosa, "The tight
    bound of first fit decreasing", ESCAPE 2007.
    """
    packs: list[list[int]] = []
    width = packing_length * _SEGMENTS_PER_BAND // max(len(lengths), _SEGMENTS_PER_BAND) + 1
    bands: list[list[int]] = [[] for _ in range(packing_length // width + 1)]  # each: room << 32 | pack, ascending
    open_bands = 0  # bit b: band b is not empty
    for position, length in enumerate(lengths):
        band = length // width
        at = bisect_left(bands[band], length << 32)
        if at == len(bands[band]):
            higher = open_bands >> band + 1
            if not higher:
                room = packing_length - length
                if room:
                    insort(bands[room // width], room << 32 | len(packs))
                    open_bands |= 1 << room // width
                packs.append([position])
                continue
            band += (higher & -higher).bit_length()
            at = 0
        key = bands[band].pop(at)
        if not bands[band]:
            open_bands ^= 1 << band
        pack = key & 0xFFFFFFFF
        packs[pack].append(position)
        room = (key >> 32) - length
        if room:
            insort(bands[room // width], room << 32 | pack)
            open_bands |= 1 << room // width
    return packs


def first_fit_decreasing(lengths: Sequence[int], packing_length: int) -> list[list[int]]:
    """Packs the positions in `lengths` (longest first, none over `packing_length`), each into the oldest with room.

    Cost: `O(n log n)`. Lengths only fall, so a pack that has room for one segment has room for all later ones until
    it gets one. Packs with room wait in a heap by age; the others wait in a heap by room until segments are short
    enough.

    Source: as for best fit.
    """
    packs: list[list[int]] = []
    rooms: list[int] = []
    shortest = lengths[-1] if lengths else 0
    roomy: list[int] = []
    tight: list[int] = []  # each: -room << 32 | pack
    for position, length in enumerate(lengths):
        while tight and tight[0] >> 32 <= -length:
            heappush(roomy, heappop(tight) & 0xFFFFFFFF)
        if not roomy:
            roomy.append(len(packs))
            packs.append([])
            rooms.append(packing_length)
        pack = roomy[0]
        packs[pack].append(position)
        room = rooms[pack] = rooms[pack] - length
        if room < length:
            heappop(roomy)
            if room >= shortest:
                heappush(tight, (-room << 32) + pack)
    return packs


def longest_processing_time(lengths: Sequence[int], packs: int) -> list[list[int]]:
    """Puts each segment (longest first) into the emptiest of `packs` packs so far. `O(n log packs)`.

    Source: R. L. Graham, "Bounds on multiprocessing timing anomalies", SIAM J. Appl. Math. 17 (1969).
    """
    level: list[list[int]] = [[] for _ in range(packs)]
    emptiest = [(0, pack) for pack in range(packs)]
    for position, length in enumerate(lengths):
        load, pack = emptiest[0]
        level[pack].append(position)
        heapreplace(emptiest, (load + length, pack))
    return level
