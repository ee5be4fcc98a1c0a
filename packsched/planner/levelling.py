"""The balanced objective: the longest of exactly `packs` packs as short as possible.

A packing length that works for `packs` packs is an upper bound of the answer, one proven not to work a lower
bound; bisection between the two asks the same question as the dense objective, with cheap searches. Windows with
many segments a pack reach the lower bound at the first question.
"""

from collections.abc import Sequence

from packsched.planner.bin_completion import OutOfNodesError, bin_completion
from packsched.planner.bounds import lower_bound
from packsched.planner.greedy import best_fit_decreasing, longest_processing_time
from packsched.planner.pairwise_resplit import pairwise_resplit
from packsched.planner.ruin_and_recreate import ruin_and_recreate
from packsched.planner.stages import Packs, fill, fit, searchable

# Work for one question of the bisection at effort 1, counted.
_NODES = 300
_ROUNDS = 60


def longest_pack(lengths: Sequence[int], packs: Packs) -> int:
    """Tokens in the longest of the packs."""
    return max(sum(lengths[position] for position in pack) for pack in packs)


def longest_pack_bound(lengths: Sequence[int], packing_length: int, packs: int) -> int:
    """No plan with that many packs has a shorter longest pack, in tokens. Lengths longest first, not empty.

    The mean, the longest segment, and every set of `k * packs + 1` longest segments, of which some pack holds
    `k + 1` (Graham 1969); then the packing lengths that the bounds of `bounds.py` refute are bisected away.
    """
    low = max(-(-sum(lengths) // packs), lengths[0])
    for k in range(1, (len(lengths) - 1) // packs + 1):
        low = max(low, sum(lengths[k * packs - k : k * packs + 1]))
    high = packing_length
    while low < high:
        middle = min((low + high) // 2, low + 64)  # refuted packing lengths are close to the mean
        if lower_bound(lengths, middle)[0] > packs:
            low = middle + 1
        elif middle == low:
            break
        else:
            high = middle
    return low


def level_packs(
    lengths: Sequence[int], packing_length: int, packs: int, bound: int, effort: float
) -> tuple[Packs | None, int]:
    """Packs whose longest is as short as found (None: none found at all), and its proven bound, both in tokens.

    Source: E. G. Coffman, M. R. Garey and D. S. Johnson, "An application of bin-packing to multiprocessor
    scheduling" (MULTIFIT), SIAM J. Comput. 7 (1978), with an exact search in the place of first fit.
    """
    best: Packs = longest_processing_time(lengths, packs)
    high = longest_pack(lengths, best)
    if high > bound and searchable(lengths, high):
        low, best = _bisect(lengths, packs, bound, best, effort)
        bound = max(bound, low)
        high = longest_pack(lengths, best)
    if high > packing_length:
        # Leveling did not even reach the cap; placing the window at all comes before leveling it.
        placed: Packs | None = best_fit_decreasing(lengths, packing_length)
        if placed is not None and len(placed) > packs:
            placed = fit(lengths, packing_length, packs, effort)
        if placed is None:
            return None, packing_length + 1
        best = placed
    return best, bound


def _bisect(lengths: Sequence[int], packs: int, bound: int, best: Packs, effort: float) -> tuple[int, Packs]:
    """The proven bound and the packs with the shortest longest one after asking about lengths in between."""
    asked = bound
    high = longest_pack(lengths, best)
    middle = bound
    while asked < high:
        found, refuted = _cheap_fit(lengths, middle, packs, effort)
        if found is None and middle == bound:
            best = pairwise_resplit(lengths, best)
        if found is not None:
            best = found
        elif refuted:
            bound = middle + 1
        high = min(high, longest_pack(lengths, best))
        if found is None:
            asked = middle + 1
        middle = (asked + high) // 2
    return bound, best


def _cheap_fit(lengths: Sequence[int], limit: int, packs: int, effort: float) -> tuple[Packs | None, bool]:
    """Packs of at most `limit` tokens, or None; and whether None is proven."""
    filled, left = fill(lengths, limit, packs)
    if not left:
        return filled, False
    try:
        found = bin_completion(lengths, limit, packs, int(_NODES * effort))
        return found, found is None
    except OutOfNodesError:
        return ruin_and_recreate(lengths, limit, filled, left, int(_ROUNDS * effort)), False
