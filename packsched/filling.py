"""Minimum bin slack: fill one pack at a time, each as full as the remaining segments allow.

The longest remaining segment is pinned, the rest of the pack is an exact subset sum over the others, longest
first, which keeps the short segments for the packs that come last. One pack costs at most one big-integer shift
per remaining segment and usually far fewer: the sums reach a fit after a few dozen segments.

How exact each pack should be is the knob that matters. Insisting on no waste spends short segments where a little
waste would have done; an `allowance` lets every pack waste up to a multiple of its share of the window's slack.
"""

from bisect import bisect_left
from collections.abc import Sequence
from operator import neg

from packsched.subset_sum import fill_room

# Multiples (numerator, denominator) of a pack's fair share of the slack, in the order in which they succeed most.
ALLOWANCES = ((1, 1), (5, 4), (0, 1), (3, 4), (1, 4), (3, 2))


def minimum_bin_slack(
    lengths: Sequence[int], packing_length: int, packs: int, allowance: tuple[int, int]
) -> tuple[list[list[int]], list[int]]:
    """At most `packs` packs of positions in `lengths` (longest first), and the positions left over.

    Cost: `O(packs * n * packing_length / 64)` at worst, about 1 ms for 32 packs of 16 segments.

    Source: J. N. D. Gupta and J. C. Ho, "A new heuristic algorithm for the one-dimensional bin-packing problem",
    Production Planning & Control 10 (1999); subset sums for it: A. Caprara and U. Pferschy, "Worst-case analysis
    of the subset sum algorithm for bin packing", Operations Research Letters 32 (2004).
    """
    times, per = allowance
    slack = packs * packing_length - sum(lengths)
    filled: list[list[int]] = []
    left = list(range(len(lengths)))
    left_lengths = list(lengths)
    while left and len(filled) < packs:
        enough = max(0, slack) * times // (per * (packs - len(filled)))
        room = packing_length - left_lengths[0]
        start = bisect_left(left_lengths, -room, lo=1, key=neg)
        chosen = fill_room(left_lengths[start:], room, enough)
        pack = [left[0]] + [left[start + at] for at in chosen]
        for at in reversed(chosen):
            room -= left_lengths[start + at]
            del left[start + at], left_lengths[start + at]
        del left[0], left_lengths[0]
        slack -= room
        filled.append(pack)
    return filled, left
