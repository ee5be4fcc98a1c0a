"""Computes lower bounds on the number of packs, which turn "no plan found" into "there is none".

Every bound takes the lengths, longest first, and returns a number of packs that every plan needs. All bounds use
integer arithmetic. `lower_bound` is their maximum; removing a line from `BOUNDS` removes the bound.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate
from math import inf
from operator import neg
from typing import NamedTuple

import numpy as np


def lower_bound(lengths: Sequence[int], packing_length: int, known: float = inf) -> tuple[int, str]:
    """Returns the best of the bounds and the name of the first that gives it.

    Where a plan of `known` packs is known, no bound is higher, and the first that reaches it is the last to be asked.
    """
    best, name = 0, "no segments"
    for bound in BOUNDS:
        if best >= known:
            break
        if len(lengths) <= bound.most_segments:
            packs = bound.packs(lengths, packing_length)
            if packs > best:
                best, name = packs, bound.name
    return best, name


def volume_bound(lengths: Sequence[int], packing_length: int) -> int:
    """Divides all tokens by the tokens of one pack, rounded up. `O(n)`."""
    return -(-sum(lengths) // packing_length)


def martello_toth_bound(lengths: Sequence[int], packing_length: int) -> int:
    """Computes bound L2: segments over half a pack need one each, and medium ones share packs with the smaller of them.

    For each threshold k, segments over `packing_length - k` cannot share a pack with one of length k or more. Medium
    segments that do not fit into the room that the other large ones leave need further packs. `O(n)`.

    Source: S. Martello and P. Toth, "Lower bounds and reduction procedures for the bin packing problem",
    Discrete Applied Mathematics 28 (1990).
    """
    half = packing_length // 2
    n_large = bisect_left(lengths, -half, key=neg)
    best = n_large
    room_beside = 0
    sharing = n_large  # large segments [sharing:n_large] can share with the threshold
    medium_sum = 0
    for at in range(n_large, len(lengths)):
        threshold = lengths[at]
        medium_sum += threshold
        if at + 1 < len(lengths) and lengths[at + 1] == threshold:
            continue
        while sharing > 0 and lengths[sharing - 1] <= packing_length - threshold:
            sharing -= 1
            room_beside += packing_length - lengths[sharing]
        if medium_sum > room_beside:
            best = max(best, n_large - (room_beside - medium_sum) // packing_length)
    return best


def shortest_segments_bound(lengths: Sequence[int], packing_length: int) -> int:
    """Bounds by the fullest packs: some packs hold more segments than the average, and even the shortest do not fit.

    Take n segments in p packs, n = k * p + r with r < p. The r packs with most segments hold `r * (k + 1)` or more: if
    the last of them held k at most, all the others would too, and that leaves so many for the r. The tokens of as
    many of the shortest segments have to fit into r packs; if not, p packs are too few. `O(n)`.

    Source: a counting argument of our own, after the bounds for sets of the longest segments in R. L. Graham, "Bounds
    on multiprocessing timing anomalies", SIAM J. Appl. Math. 17 (1969).
    """
    tokens = list(accumulate(reversed(lengths), initial=0))
    packs = volume_bound(lengths, packing_length)
    while packs < len(lengths):
        per_pack, more = divmod(len(lengths), packs)
        if tokens[more * (per_pack + 1)] <= more * packing_length:
            break
        packs += 1
    return packs


def dual_feasible_bound(lengths: Sequence[int], packing_length: int) -> int:
    """Computes the volume bound of rounded lengths, which fit whenever the true ones do: f_k for k = 1 to 20.

    f_k(l) is l itself when (k + 1) * l is a multiple of the packing length, else floor((k + 1) * l / packing
    length) of k equal parts of a pack. The volume bound of the rounded lengths holds for the true ones. `O(20 * n)`.

    Source: S. P. Fekete and J. Schepers, "New classes of fast lower bounds for bin packing problems",
    Mathematical Programming 91 (2001), function u^(k).
    """
    # Python's own integers where a sum might not fit into 64 bits.
    kind = np.int64 if 21 * packing_length * max(1, len(lengths)) < 1 << 63 else object
    k = np.arange(1, 21, dtype=kind)[:, None]
    values = np.array(lengths, dtype=kind)
    # In units of 1 / (k * packing_length) of a pack, to stay in integers.
    parts, rest = (k + 1) * values // packing_length, (k + 1) * values % packing_length
    totals = np.where(rest > 0, parts * packing_length, k * values).sum(axis=1)
    return int((-(-totals // (k[:, 0] * packing_length))).max())


class Bound(NamedTuple):
    """Describes one line of the table: `packs` runs for windows of up to `most_segments`."""

    name: str
    packs: Callable[[Sequence[int], int], int]
    most_segments: float


# Beyond 4096 segments the last one costs more than it gains.
BOUNDS: tuple[Bound, ...] = (
    Bound("volume", volume_bound, inf),
    Bound("Martello-Toth L2", martello_toth_bound, inf),
    Bound("shortest segments", shortest_segments_bound, inf),
    Bound("dual-feasible functions", dual_feasible_bound, 4096),
)
