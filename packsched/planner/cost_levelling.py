"""Plans objective `cost`: exactly `packs` packs within the cap, the costliest of them as cheap as possible.

- The costliest segment goes first, into the cheapest pack with room for its tokens (longest processing time, by cost).
- If one finds no room, the packs of the dense objective are the start: fitting comes before cost.
- Then the costliest pack exchanges one segment with another pack, or gives one to it, as long as that helps.

Cost: `O(n log n)` for the start; an exchange compares the segments of one pack with all others, in numpy.

Source: R. L. Graham, "Bounds on multiprocessing timing anomalies", SIAM J. Appl. Math. 17 (1969); the exchanges are
those of G. Finn and E. Horowitz, "A linear time approximation algorithm for multiprocessor scheduling", BIT 19 (1979).
"""

from collections.abc import Sequence

import numpy as np

from packsched.planner.levelling import load_bound
from packsched.planner.stages import Packs, Proof, SortedWindow, fit

# Costs are scaled down to at most so many bits in all, so that no sum overflows.
_COST_BITS = 60
_NEVER = np.iinfo(np.int64).max


def level_costs(
    window: SortedWindow, costs: Sequence[int], packs: int, effort: float
) -> tuple[Packs | None, Proof, bool]:
    """Returns the packs (None: none found), the fewest packs there could be, and whether no plan is more level.

    Args:
        window: The lengths and the cap.
        costs: The cost of each length of the window.
        packs: How many packs there are.
        effort: Multiplies the counted work.
    """
    if not window.lengths:
        return [], window.lower_bound, True
    start = _costliest_first(window, costs, packs)
    if start is None:
        answer = fit(window, packs, effort)
        if not isinstance(answer, list):
            return None, answer or window.lower_bound, False
        start = answer + [[] for _ in range(packs - len(answer))]
    best = exchange(window.lengths, costs, start, window.packing_length, most=max(1, int(4 * len(costs) * effort)))
    costliest = max(sum(costs[position] for position in pack) for pack in best)
    return best, window.lower_bound, costliest == load_bound(sorted(costs, reverse=True), packs)


def _costliest_first(window: SortedWindow, costs: Sequence[int], packs: int) -> Packs | None:
    found: Packs = [[] for _ in range(packs)]
    rooms, spent = [window.packing_length] * packs, [0] * packs
    for position in sorted(range(len(costs)), key=lambda position: (-costs[position], position)):
        length = window.lengths[position]
        pack = min((pack for pack in range(packs) if rooms[pack] >= length), key=spent.__getitem__, default=None)
        if pack is None:
            return None
        found[pack].append(position)
        rooms[pack] -= length
        spent[pack] += costs[position]
    return found


def exchange(
    lengths: Sequence[int], costs: Sequence[int], packs: Packs, packing_length: int, *, most: int, enough: int = 0
) -> Packs:
    """Lets the costliest pack exchange a segment for a cheaper one, or give one away, while that lowers the highest.

    Args:
        lengths: The tokens of each segment.
        costs: What each costs.
        packs: Where they are now: positions in `lengths`.
        packing_length: The cap of a pack.
        most: The most exchanges.
        enough: A cost that needs no lowering.
    """
    lens = np.array(lengths, dtype=np.int64)
    shift = max(0, sum(costs).bit_length() - _COST_BITS)
    cost = np.array([one >> shift for one in costs], dtype=np.int64)
    where = np.zeros(len(lens), np.int64)
    for number, positions in enumerate(packs):
        where[positions] = number
    spent, room = np.zeros(len(packs), np.int64), np.full(len(packs), packing_length)
    np.add.at(spent, where, cost)
    np.subtract.at(room, where, lens)
    for _ in range(most):
        top = int(spent.argmax())
        if spent[top] <= enough >> shift:
            break
        mine, theirs = np.flatnonzero(where == top), np.flatnonzero(where != top)
        less = cost[mine][:, None] - cost[theirs]
        longer = lens[mine][:, None] - lens[theirs]
        fits = (longer <= room[where[theirs]]) & (-longer <= room[top]) & (less > 0)
        swapped = np.where(fits, np.maximum(spent[top] - less, spent[where[theirs]] + less), _NEVER)
        given = np.maximum(spent[top] - cost[mine][:, None], spent + cost[mine][:, None])
        given = np.where(lens[mine][:, None] <= room, given, _NEVER)
        given[:, top] = _NEVER
        highest = np.concatenate([swapped, given], axis=1)
        row, column = divmod(int(highest.argmin()), highest.shape[1])
        if highest[row, column] >= spent[top]:
            break
        moves = [(int(mine[row]), int(where[theirs[column]]) if column < len(theirs) else column - len(theirs))]
        if column < len(theirs):
            moves.append((int(theirs[column]), top))
        for one, pack in moves:
            spent[where[one]] -= cost[one]
            room[where[one]] += lens[one]
            spent[pack] += cost[one]
            room[pack] -= lens[one]
            where[one] = pack
    return [np.flatnonzero(where == pack).tolist() for pack in range(len(packs))]
