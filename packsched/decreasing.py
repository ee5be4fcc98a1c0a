"""Best-fit decreasing: the first attempt at every window, and good enough for most of them.

Segments are taken longest first; each goes into the fullest pack that still has room, and a new pack is
opened when none has. Never more than 11/9 of the fewest packs plus 2/3 (Johnson 1974; Dosa and Sgall 2014), and no
extra pack at all on ordinary windows. `O(n log n)` up to a few thousand segments.
"""

from bisect import bisect_left, insort


def best_fit_decreasing(lengths: list[int], packing_length: int) -> list[list[int]]:
    """Packs of positions in `lengths` (longest first, none over `packing_length`); equal rooms: lowest pack.

    Source: D. S. Johnson, "Fast algorithms for bin packing", J. Comput. Syst. Sci. 8 (1974).
    """
    packs: list[list[int]] = []
    rooms: list[int] = []  # room << 24 | pack, ascending
    for position, length in enumerate(lengths):
        at = bisect_left(rooms, length << 24)
        if at == len(rooms):
            pack = len(packs)
            packs.append([position])
            room = packing_length - length
        else:
            key = rooms.pop(at)
            pack = key & 0xFFFFFF
            packs[pack].append(position)
            room = (key >> 24) - length
        insort(rooms, room << 24 | pack)
    return packs
