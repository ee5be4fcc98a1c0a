"""Plans the balanced objective: exactly `packs` packs, the longest of them as short as possible.

A pack length into which the window fits is an upper bound of the answer; a pack length that is proven too short is a
lower bound. The bisection between the two asks the same question as the dense objective, with little work for each
length. Windows with many segments a pack reach the lower bound at the first question.
"""

from collections.abc import Sequence
from dataclasses import replace

from packsched.planner.bounds import lower_bound
from packsched.planner.greedy import longest_processing_time
from packsched.planner.pairwise_resplit import pairwise_resplit
from packsched.planner.stages import Packs, Proof, SortedWindow, fit

# How much of the usual work goes into each pack length that the bisection asks about.
_BISECTION_EFFORT = 0.05
# Packs times segments: a larger window takes seconds to bisect, so pairs of its packs are re-split and that is all.
_MOST_BISECTED = 1 << 17
# More subset sums than the pairs of 64 packs need, and about half a second; fewer where filling takes long as well.
_MOST_SPLITS, _MOST_SPLITS_OF_LARGE = 20_000, 8_000


def level_packs(window: SortedWindow, packs: int, effort: float) -> tuple[Packs | None, Proof, bool]:
    """Returns the packs (None: none found), the fewest packs there could be, and whether no plan is more level.

    Source: E. G. Coffman, M. R. Garey and D. S. Johnson, "An application of bin-packing to multiprocessor
    scheduling" (MULTIFIT), SIAM J. Comput. 7 (1978), with an exact search in the place of first fit.
    """
    if not window.lengths or window.lower_bound.packs > packs:
        return None if window.lengths else [], window.lower_bound, not window.lengths
    best, shortest = shortest_longest_pack(window, packs, effort)
    if longest_pack(window.lengths, best) > window.packing_length:
        # Leveling did not even reach the cap; placing the window at all comes before leveling it.
        placed = fit(window, packs, effort)
        if isinstance(placed, Proof):
            return None, placed, False
        if placed is None:
            return None, window.lower_bound, False
        best = placed
    return best, window.lower_bound, longest_pack(window.lengths, best) == shortest


def shortest_longest_pack(window: SortedWindow, packs: int, effort: float) -> tuple[Packs, int]:
    """Returns the most level packs it found, which may exceed the cap, and a lower bound of every longest pack."""
    shortest = longest_pack_bound(window.lengths, window.packing_length, packs)
    best = longest_processing_time(window.lengths, packs)
    longest = longest_pack(window.lengths, best)
    if longest > shortest and replace(window, packing_length=longest).searchable:
        if packs * len(window.lengths) <= _MOST_BISECTED:
            return _bisect(window, packs, best, shortest, effort)
        best = pairwise_resplit(window.lengths, best, splits=_MOST_SPLITS_OF_LARGE)
    return best, shortest


def longest_pack(lengths: Sequence[int], packs: Packs) -> int:
    """Returns the tokens in the longest of the packs."""
    return max(sum(lengths[position] for position in pack) for pack in packs)


def longest_pack_bound(lengths: Sequence[int], packing_length: int, packs: int) -> int:
    """Returns a lower bound, in tokens, of the longest pack of every plan with `packs` packs; `lengths` is not empty.

    It starts from `load_bound`. A bisection then raises it past the packing lengths that the bounds of `bounds.py`
    refute. `O(n log(packing_length))`.
    """
    low, high = load_bound(lengths, packs), packing_length
    # Refuted packing lengths are usually close to the mean, so look there first, and then further and further away.
    step = 64
    while low < high:
        middle = min((low + high) // 2, low + step)
        if lower_bound(lengths, middle)[0] > packs:
            low = middle + 1
            step *= 2
        elif middle == low:
            break
        else:
            high = middle
    return low


def load_bound(loads: Sequence[int], packs: int) -> int:
    """Returns a lower bound of the highest load of every distribution over `packs` packs; longest first, not empty.

    The bounds are the mean, the largest load, and every set of the `k * packs + 1` largest, of which some pack holds
    `k + 1` (Graham 1969). `O(n)`.
    """
    bound = max(-(-sum(loads) // packs), loads[0])
    for k in range(1, (len(loads) - 1) // packs + 1):
        bound = max(bound, sum(loads[k * packs - k : k * packs + 1]))
    return bound


def _bisect(window: SortedWindow, packs: int, best: Packs, shortest: int, effort: float) -> tuple[Packs, int]:
    """Returns the most level packs it found, and a lower bound of every plan's longest pack; begins with `shortest`."""
    low = limit = shortest
    longest = longest_pack(window.lengths, best)
    while low < longest:
        found = fit(replace(window, packing_length=limit), packs, _BISECTION_EFFORT * effort, levelling=True)
        if isinstance(found, list):
            best = found
        else:
            if limit == shortest:
                best = pairwise_resplit(window.lengths, best, splits=_MOST_SPLITS)
            if isinstance(found, Proof):
                shortest = limit + 1
            low = limit + 1
        longest = min(longest, longest_pack(window.lengths, best))
        limit = (low + longest) // 2
    return best, shortest
