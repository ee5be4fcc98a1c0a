"""Minimum bin slack: fill one pack at a time, each as full as the remaining segments allow.

The longest remaining segment is pinned, the rest of the pack is an exact subset sum over the others, longest
first, which keeps the short segments for the packs that come last. One pack costs at most one big-integer
shift per remaining segment and usually far fewer: the sums reach an exact fit after a few dozen segments.
"""

from packsched.subset_sum import fill_room


def minimum_bin_slack(lengths: list[int], packing_length: int) -> list[list[int]]:
    """Packs of positions, filled one after the other with the least slack each (longest segments first).

    Source: J. N. D. Gupta and J. C. Ho, "A new heuristic algorithm for the one-dimensional bin-packing
    problem", Production Planning & Control 10 (1999); the subset-sum form: A. Caprara and U. Pferschy (2004).
    """
    packs = []
    left = list(range(len(lengths)))
    while left:
        pinned, rest = left[0], left[1:]
        chosen = fill_room([lengths[position] for position in rest], packing_length - lengths[pinned])
        taken = set(chosen)
        packs.append([pinned] + [rest[at] for at in chosen])
        left = [position for at, position in enumerate(rest) if at not in taken]
    return packs
