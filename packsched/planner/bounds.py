"""Lower bounds on the number of packs: what turns "no plan found" into "there is none".

Every bound takes the lengths longest first and returns a number of packs that no plan can go below. All of
them are integer arithmetic. `lower_bound` is their maximum; a bound is taken out by deleting its line in `_BOUNDS`.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from operator import neg

import numpy as np


def lower_bound(lengths: Sequence[int], packing_length: int, enough: int | None = None) -> tuple[int, str]:
    """The best of the bounds and the name of the one that gives it; stops at the first that is `enough`."""
    best, name = 0, "no segments"
    for bound_name, bound_of in _BOUNDS if len(lengths) <= _MOST_SEGMENTS else _BOUNDS[:2]:
        bound = bound_of(lengths, packing_length)
        if bound > best:
            best, name = bound, bound_name
        if enough is not None and best >= enough:
            break
    return best, name


def volume_bound(lengths: Sequence[int], packing_length: int) -> int:
    """All tokens over the tokens of one pack, rounded up. `O(n)`."""
    return -(-sum(lengths) // packing_length)


def martello_toth_bound(lengths: Sequence[int], packing_length: int) -> int:
    """Bound L2: segments over half a pack need one each, and medium ones must fit beside the smaller of those.

    For each threshold k: segments over `packing_length - k` can share with none of length k or more; what the
    medium ones need beyond the room beside the other large ones takes packs of its own. `O(n)`.

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


def cardinality_bound(lengths: Sequence[int], packing_length: int) -> int:
    """No pack holds more segments than the shortest ones that fit together, the i longest counted alone.

    For each i: of the i longest, at most k share a pack, where the k shortest of them still fit and k + 1 do not;
    so they need `i / k` packs. `O(n log n)`.

    Source: folklore; with subset sizes in M. Dell'Amico and S. Martello, "Bounds for the cardinality constrained
    P||Cmax problem", Journal of Scheduling 4 (2001).
    """
    sums = list(accumulate(lengths, initial=0))
    best = 0
    most = 1
    for i in range(len(lengths), 0, -1):
        # The last k of the i longest: the fewest tokens that k of them can have. k only shrinks as i does.
        if i == len(lengths):
            while most < i and sums[i] - sums[i - most - 1] <= packing_length:
                most += 1
        most = min(most, i)
        while most > 1 and sums[i] - sums[i - most] > packing_length:
            most -= 1
        best = max(best, -(-i // most))
    return best


def dual_feasible_bound(lengths: Sequence[int], packing_length: int) -> int:
    """Rounded lengths that fit whenever the true ones do, and whose volume is larger: f_k for k = 1 to 20.

    f_k(l) is l itself when (k + 1) * l is a multiple of the packing length, else floor((k + 1) * l / packing
    length) of k equal parts of a pack. Its volume bound holds for the original lengths. `O(20 * n)`.

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


# Beyond this many segments only the first two bounds are taken: the others cost more than they gain.
_MOST_SEGMENTS = 4096
_BOUNDS = (
    ("volume", volume_bound),
    ("Martello-Toth L2", martello_toth_bound),
    ("cardinality", cardinality_bound),
    ("dual-feasible functions", dual_feasible_bound),
)
