"""Plans the windows of many ranks at once by best-fit decreasing, in numpy over all ranks.

Best fit settles nearly every window. Here the k-th longest segment of every rank is placed in the same few operations,
so a thousand windows of 32 segments take about 10 ms instead of 35. The plans are those of `plan_window`, bit for bit.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from packsched.window import WindowPlan

# For fewer windows, longer ones or more packs, one window after the other is faster.
_LEAST_WINDOWS = 32
_MOST_SEGMENTS = 256
_MOST_PACKS = 64
# Rooms are compared together with the number of their pack, in 63 bits.
_MOST_TOKENS = 1 << 56


def plan_easy_windows(
    windows: Sequence[Sequence[int]], packing_length: int, micro_steps: int
) -> list[WindowPlan | None]:
    """Plans objective `dense` for the windows that best fit packs into as few packs as their tokens need.

    Args:
        windows: For each window its checked lengths, in insertion order.
        packing_length: The cap of a pack.
        micro_steps: Packs of each plan.

    Returns:
        For each window its plan, or None where it takes more than this.

    Cost: `O(N * micro_steps)` for N segments in all.
    """
    plans: list[WindowPlan | None] = [None] * len(windows)
    short = [at for at, window in enumerate(windows) if len(window) <= _MOST_SEGMENTS]
    if len(short) < _LEAST_WINDOWS or micro_steps > _MOST_PACKS or packing_length > _MOST_TOKENS:
        return plans
    sizes = np.array([len(windows[at]) for at in short])
    lens = np.zeros((len(short), int(sizes.max())), np.int64)  # 0 behind the last segment of a shorter window
    lens[np.arange(lens.shape[1]) < sizes[:, None]] = np.fromiter(
        chain.from_iterable(windows[at] for at in short), np.int64
    )
    # As in `plan_checked`: what all lengths are multiples of cannot fill a cap that is no multiple of it.
    unit = np.maximum(1, np.gcd.reduce(lens, axis=1))
    caps = packing_length // unit * unit
    pack_of, rooms = _best_fit(lens, caps, micro_steps)
    tokens = caps[:, None] - rooms
    fewest = -(-lens.sum(axis=1) // caps)
    easy = (pack_of >= 0).all(axis=1) & ((tokens > 0).sum(axis=1) == fewest)
    for at, size, packed, pack_lens, bound, is_easy in zip(
        short, sizes.tolist(), pack_of.tolist(), tokens.tolist(), fewest.tolist(), easy.tolist(), strict=True
    ):
        if is_easy:
            packs: dict[int, list[int]] = {}  # in the order of their oldest segment
            for index in range(size):
                packs.setdefault(packed[index], []).append(index)
            empty = micro_steps - len(packs)
            plans[at] = WindowPlan(
                tuple(map(tuple, packs.values())) + ((),) * empty,
                tuple([pack_lens[pack] for pack in packs]) + (0,) * empty,
                len(packs),
                bound,
                True,
            )
    return plans


def _best_fit(lens: np.ndarray, caps: np.ndarray, packs: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pack of each segment, -1 where none has room, and the room that the packs have left.

    A pack without segments has more room than any other, so the tightest pack is the one that best fit takes.
    """
    windows = np.arange(len(lens))
    order = np.argsort(-lens, axis=1, kind="stable")
    longest_first = np.take_along_axis(lens, order, axis=1)
    # A room and the number of its pack in one integer: the smallest is the tightest, the oldest of equal ones.
    rooms = caps * packs + np.arange(packs)[:, None]
    placed = np.empty_like(lens)
    for k in range(lens.shape[1]):
        left = rooms - longest_first[:, k] * packs
        # A negative number becomes a large one.
        tightest = left.view(np.uint64).min(axis=0).view(np.int64)
        pack = tightest % packs
        fits = tightest >= 0
        rooms[pack, windows] = np.where(fits, tightest, rooms[pack, windows])
        placed[:, k] = np.where(fits, pack, -1)
    pack_of = np.empty_like(placed)
    np.put_along_axis(pack_of, order, placed, axis=1)
    return pack_of, rooms.T // packs
