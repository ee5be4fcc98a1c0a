"""Packs by minimum bin slack: fills one pack at a time, each as full as the remaining segments allow.

Each pack gets the longest remaining segment; an exact subset sum over the others fills the rest, longest first, which
keeps the short segments for the last packs. One pack costs at most one big-integer shift per remaining segment and
usually far fewer: the sums reach a fit after a few dozen segments.

The result depends most on how exactly each pack is filled. Packs without waste use up short segments where a little
waste would do. An `allowance` lets every pack waste up to a multiple of its share of the window's slack.
"""

from bisect import bisect_left
from collections.abc import Sequence
from math import inf
from operator import neg

from packsched.subset_sum import fill_room

Allowance = tuple[int, int]
"""A multiple (numerator, denominator) of a pack's fair share of the slack."""

FAIR_SHARE: Allowance = (1, 1)
# In the order in which they succeed most, after the fair share.
OTHER_ALLOWANCES: tuple[Allowance, ...] = ((5, 4), (0, 1), (3, 4), (1, 4), (3, 2))


def minimum_bin_slack(
    lengths: Sequence[int], packing_length: int, packs: int, allowances: Sequence[Allowance], shifts: float = inf
) -> list[list[int]] | None:
    """Puts all positions in `lengths` (longest first) into at most `packs` packs; returns None if it finds no way.

    Tries one allowance after the other. Without slack all are the same, so the fair share is the only one to try.

    Cost: `O(packs * n * packing_length / 64)` for each allowance, about 1 ms for 32 packs of 16 segments; at most
    `shifts` of half a microsecond. One more segment in the sums of a pack is one shift for every 2^14 tokens.

    Source: J. N. D. Gupta and J. C. Ho, "A new heuristic algorithm for the one-dimensional bin-packing problem",
    Production Planning & Control 10 (1999); subset sums for it: A. Caprara and U. Pferschy, "Worst-case analysis
    of the subset sum algorithm for bin packing", Operations Research Letters 32 (2004).
    """
    slack = packs * packing_length - sum(lengths)
    for allowance in allowances if slack else [one for one in allowances if one == FAIR_SHARE]:
        filled = _fill(lengths, packing_length, packs, slack, allowance, shifts)
        if filled is not None:
            return filled
    return None


def _fill(
    lengths: Sequence[int], packing_length: int, packs: int, slack: int, allowance: Allowance, shifts: float
) -> list[list[int]] | None:
    times, per = allowance
    filled: list[list[int]] = []
    left = list(range(len(lengths)))
    left_lengths = list(lengths)
    while left and slack >= 0 and shifts > 0:
        enough = slack * times // (per * (packs - len(filled)))
        room = packing_length - left_lengths[0]
        start = bisect_left(left_lengths, -room, lo=1, key=neg)
        chosen = fill_room(left_lengths[start:], room, enough)
        filled.append([left[0]] + [left[start + at] for at in chosen])
        tried = len(left) - start
        per_segment = (room >> 14) + 1
        for at in reversed(chosen):
            room -= left_lengths[start + at]
            del left[start + at], left_lengths[start + at]
        del left[0], left_lengths[0]
        slack -= room
        # The sums end at the last segment chosen if that was enough.
        shifts -= ((chosen[-1] + 1 if chosen else 0) if room <= enough else tried) * per_segment
    return filled if slack >= 0 and not left else None
