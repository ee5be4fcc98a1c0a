"""Levels packs by exact pairwise re-splits.

The segments of the longest pack and another one are split again by an exact subset sum, as near to the middle as
possible. This repeats until no partner shortens the longest pack.
"""

from collections.abc import Sequence
from math import inf

from packsched.subset_sum import fill_room


def pairwise_resplit(
    lengths: Sequence[int], packs: list[list[int]], enough: int = 0, splits: float = inf
) -> list[list[int]]:
    """Returns the same positions in as many packs, the longest of them as short as re-splitting pairs makes it.

    Args:
        lengths: The tokens of each segment.
        packs: Where they are now: positions in `lengths`.
        enough: Stops when no pack is longer than this.
        splits: Stops after this many subset sums.

    Cost: at most `4 * len(packs)` successful re-splits. Each tries up to `len(packs)` partners, with one small subset
    sum for each.

    Source: exact two-way splits are number partitioning, R. E. Korf, "A complete anytime algorithm for number
    partitioning", Artificial Intelligence 106 (1998); applied to pairs as in K. Fleszar and K. S. Hindi,
    "New heuristics for one-dimensional bin-packing", Computers & Operations Research 29 (2002).
    """
    packs = [list(pack) for pack in packs]
    loads = [sum(lengths[position] for position in pack) for pack in packs]
    for _ in range(4 * len(packs)):
        longest = max(range(len(packs)), key=loads.__getitem__)
        if loads[longest] <= enough:
            return packs
        for partner in sorted(range(len(packs)), key=loads.__getitem__):
            if loads[longest] - loads[partner] < 2:
                return packs  # this partner and all after it are as long as the longest
            if splits <= 0:
                return packs
            splits -= 1
            total = loads[longest] + loads[partner]
            pool = packs[longest] + packs[partner]
            lower = fill_room([lengths[position] for position in pool], total // 2)
            short = sum(lengths[pool[at]] for at in lower)
            if total - short < loads[longest]:
                taken = set(lower)
                packs[partner] = [pool[at] for at in lower]
                packs[longest] = [position for at, position in enumerate(pool) if at not in taken]
                loads[partner], loads[longest] = short, total - short
                break
        else:
            return packs
    return packs
