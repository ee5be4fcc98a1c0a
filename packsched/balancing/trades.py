"""Lets a rank whose segments fit its packs' tokens, but not its packs, trade segments with another rank.

In a nearly full window no pack has room to exchange anything. So two ranks trade: one gives one or two segments and
gets one or two, and both are planned anew. Most sets of segments can be packed even then, so a few trades are tried,
in the order of the tokens that they move.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from packsched.balancing.exchange import Held, HeldUnit, own_first
from packsched.window import WindowPlan

# Ranks that are asked, those with most free tokens first, and the trades that are planned with all of them.
_PARTNERS, _TRADES = 8, 32
# The shortest segments of a rank, which are offered alone and in pairs.
_MOST_ALONE, _MOST_IN_PAIRS = 1024, 40

Ints = NDArray[np.int64]


def trade_places(
    held: Held,
    lens: Sequence[Sequence[int]],
    costs: Sequence[Sequence[int]],
    tokens: int,
    most_cost: int,
    plans: list[WindowPlan | None],
    plan: Callable[[Sequence[HeldUnit]], WindowPlan | None],
) -> None:
    """Trades segments of each rank without a plan until it has one (`held` and `plans` change); some may stay without.

    Args:
        held: For each rank the segments that it holds.
        lens: For each rank the tokens of its own segments.
        costs: The cost of each of these segments; all together below 2^62.
        tokens: The tokens that fit the packs of a rank.
        most_cost: The most that a rank may cost after a trade.
        plans: For each rank its plan, or None.
        plan: Plans the segments of a rank.
    """
    for rank in range(len(plans)):
        if plans[rank] is not None:  # also where an earlier rank's trade has placed it
            continue
        used = [sum(lens[home][at] for home, at in here) for here in held]
        others = sorted((other for other in range(len(held)) if other != rank), key=lambda other: (used[other], other))
        asked = others[:_PARTNERS]
        for other in asked:
            if _trade(rank, other, held, lens, costs, tokens, most_cost, plans, plan, _TRADES // len(asked)):
                break


def _trade(
    rank: int,
    other: int,
    held: Held,
    lens: Sequence[Sequence[int]],
    costs: Sequence[Sequence[int]],
    tokens: int,
    most_cost: int,
    plans: list[WindowPlan | None],
    plan: Callable[[Sequence[HeldUnit]], WindowPlan | None],
    tries: int,
) -> bool:
    used, used_there = (sum(lens[home][at] for home, at in held[one]) for one in (rank, other))
    spent, spent_there = (sum(costs[home][at] for home, at in held[one]) for one in (rank, other))
    mine, theirs = (
        sorted(held[one], key=lambda unit: (lens[unit[0]][unit[1]], unit))[:_MOST_ALONE] for one in (rank, other)
    )
    leaving, coming = _some(len(mine)), _some(len(theirs))
    goes, comes = (_sums(here, some, lens) for here, some in ((mine, leaving), (theirs, coming)))
    goes_cost, comes_cost = (_sums(here, some, costs) for here, some in ((mine, leaving), (theirs, coming)))
    moved = _moved(mine, leaving, lens, rank, other)[:, None] + _moved(theirs, coming, lens, other, rank)
    less, cheaper = goes[:, None] - comes, goes_cost[:, None] - comes_cost
    # Both keep some of the free tokens; a window without any is rarely placed.
    kept = max(0, 2 * tokens - used - used_there) // 4
    fits = (used - less <= tokens - kept) & (used_there + less <= tokens - kept) & (less != 0)
    fits &= (spent - cheaper <= max(most_cost, spent)) & (spent_there + cheaper <= max(most_cost, spent_there))
    fits[0, :] = fits[:, 0] = False
    rows, columns = np.nonzero(fits)
    for at in moved[rows, columns].argsort(kind="stable")[:tries].tolist():
        out = {mine[place] for place in leaving[rows[at]] if place >= 0}
        back = {theirs[place] for place in coming[columns[at]] if place >= 0}
        here = own_first(rank, [one for one in held[rank] if one not in out] + list(back))
        found = plan(here)
        if found is None:
            continue
        there = own_first(other, [one for one in held[other] if one not in back] + list(out))
        found_there = plan(there)
        if found_there is not None:
            held[rank], held[other], plans[rank], plans[other] = here, there, found, found_there
            return True
    return False


def _some(count: int) -> Ints:
    """Returns no segment, each, and each pair of the first of `count`; -1 fills up."""
    left, right = np.triu_indices(min(count, _MOST_IN_PAIRS), 1)
    single = np.stack([np.arange(-1, count), np.full(count + 1, -1)], axis=1)
    return np.concatenate([single, np.stack([left, right], axis=1)])


def _sums(here: Sequence[HeldUnit], some: Ints, values: Sequence[Sequence[int]]) -> Ints:
    return _added([values[home][at] for home, at in here], some)


def _added(values: Sequence[int], some: Ints) -> Ints:
    padded: Ints = np.array([*values, 0], dtype=np.int64)
    total: Ints = padded[some].sum(axis=1)
    return total


def _moved(here: Sequence[HeldUnit], some: Ints, lens: Sequence[Sequence[int]], rank: int, to: int) -> Ints:
    """Returns the tokens that move more, or less where a segment comes home, if these leave `rank` for `to`."""
    sign = {rank: 1, to: -1}
    return _added([sign.get(home, 0) * lens[home][at] for home, at in here], some)
