"""Packs by minimum bin slack: fills one pack at a time, each as full as the remaining segments allow.

Each pack gets the longest remaining segment; an exact subset sum over the others fills the rest, longest first, which
keeps the short segments for the last packs. One pack costs at most one big-integer shift per remaining segment and
usually far fewer: the sums reach a fit after a few dozen segments.

The result depends most on how exactly each pack is filled. Packs without waste use up short segments where a little
waste would do. An `allowance` lets every pack waste up to a multiple of its share of the window's slack.
"""

from bisect import bisect_left
from collections.abc import Sequence
from operator import neg

from packsched.planner.random_integers import Integers
from packsched.subset_sum import fill_room

# Multiples (numerator, denominator) of a pack's fair share of the slack, in the order in which they succeed most.
_ALLOWANCES = ((1, 1), (5, 4), (0, 1), (3, 4), (1, 4), (3, 2))


def minimum_bin_slack(lengths: Sequence[int], packing_length: int, packs: int) -> list[list[int]] | None:
    """Puts all positions in `lengths` (longest first) into at most `packs` packs; returns None if it finds no way.

    Tries one allowance after the other; without slack all allowances are the same.

    Cost: `O(packs * n * packing_length / 64)` for each allowance, about 1 ms for 32 packs of 16 segments.

    Source: J. N. D. Gupta and J. C. Ho, "A new heuristic algorithm for the one-dimensional bin-packing problem",
    Production Planning & Control 10 (1999); subset sums for it: A. Caprara and U. Pferschy, "Worst-case analysis
    of the subset sum algorithm for bin packing", Operations Research Letters 32 (2004).
    """
    slack = packs * packing_length - sum(lengths)
    for allowance in _ALLOWANCES if slack else _ALLOWANCES[:1]:
        filled = _fill(lengths, packing_length, packs, slack, allowance)
        if filled is not None:
            return filled
    return None


def shuffled_bin_slack(lengths: Sequence[int], packing_length: int, packs: int, tries: int) -> list[list[int]] | None:
    """Packs a window with (nearly) no slack into `packs` packs; returns None if it finds no way.

    Each pack gets the longest remaining segment, but the others are tried in random order. Longest first would leave
    only short segments for the last packs, and similar short lengths rarely fill a pack exactly; a random order
    leaves a mixture. With eight or more segments a pack the first try nearly always succeeds.
    """
    draw = Integers(packs)
    for _ in range(tries):
        slack = packs * packing_length - sum(lengths)
        left = list(range(len(lengths)))
        filled: list[list[int]] = []
        while left and slack >= 0:
            keyed = sorted([(draw.below(1 << 20), position) for position in left[1:]])
            order = [position for _, position in keyed]
            room = packing_length - lengths[left[0]]
            chosen = fill_room([lengths[position] for position in order], room)
            taken = {order[at] for at in chosen}
            slack -= room - sum(lengths[position] for position in taken)
            filled.append([left[0], *sorted(taken)])
            left = [position for position in left[1:] if position not in taken]
        if slack >= 0:
            return filled
    return None


def _fill(
    lengths: Sequence[int], packing_length: int, packs: int, slack: int, allowance: tuple[int, int]
) -> list[list[int]] | None:
    times, per = allowance
    filled: list[list[int]] = []
    left = list(range(len(lengths)))
    left_lengths = list(lengths)
    while left and slack >= 0:
        enough = slack * times // (per * (packs - len(filled)))
        room = packing_length - left_lengths[0]
        start = bisect_left(left_lengths, -room, lo=1, key=neg)
        chosen = fill_room(left_lengths[start:], room, enough)
        filled.append([left[0]] + [left[start + at] for at in chosen])
        for at in reversed(chosen):
            room -= left_lengths[start + at]
            del left[start + at], left_lengths[start + at]
        del left[0], left_lengths[0]
        slack -= room
    return filled if slack >= 0 else None
