"""Chooses where the waves of a window are cut: how long a response of each wave may be.

`python -m benchmarks.waves` compares this rule with others, and says what it gains.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

FULL_ENOUGH = 0.8
"""Part of `packing_length` from which a pack is trained before the last wave.

A higher one loses the overlap where packs hold few segments: five of 2,450 tokens fill .875 of 14,000. Packs below it
wait and are planned again with the next wave.
"""


def wave_cuts(lengths: Sequence[int], waves: int) -> list[int]:
    """
    Chooses cuts for the next window from the lengths of earlier responses.

    Wave k holds the responses that are longer than cut k - 1 and at most as long as cut k; the last wave holds the
    rest. The cuts are those with which the step ends first, if all responses begin together, training takes as long
    as the longest of them, and each response has an equal share of it. The actual times are not used: clocks differ
    between ranks and runs.

    Args:
        lengths (`Sequence[int]`):
            Lengths of the responses of the last window, in any order. More windows gain nothing.
        waves (`int`):
            The largest number of waves.

    Returns:
        `list[int]`: fewer than `waves` cuts, ascending; none where all responses are equally long.
    """
    ends = sorted(set(lengths))
    if len(ends) < 2 or waves < 2:
        return []
    ordered = sorted(lengths)
    low, high = ends[-1], 2 * ends[-1]  # the step ends between them; time is counted in tokens of one response
    best: list[int] = []
    while low < high:
        middle = (low + high) // 2
        cuts = _cuts_within(ordered, waves, middle)
        if cuts is None:
            low = middle + 1
        else:
            best, high = cuts, middle
    return best


def _cuts_within(ordered: Sequence[int], waves: int, end: int) -> list[int] | None:
    """Returns cuts with which the step ends by `end`, each as late as possible; None where there are none."""
    n, longest = len(ordered), ordered[-1]
    cuts: list[int] = []
    done = 0
    while done < n:
        latest = end - longest * (n - done) // n  # what is left must be trained after it
        if latest >= longest:
            return cuts
        trained = bisect_right(ordered, latest)
        if trained == done or len(cuts) == waves - 1:
            return None
        cuts.append(ordered[trained - 1])
        done = trained
    return cuts
