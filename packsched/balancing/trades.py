"""Lets a rank whose segments fit its packs' tokens, but not its packs, trade segments with another rank.

In a nearly full window no pack has room to exchange anything. So two ranks trade: one gives one or two segments and
gets one or two, and both are planned anew. Most sets of segments can be packed even then, so a few trades are tried,
in the order of the tokens that they move.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from packsched.balancing.exchange import Held, HeldUnit, own_first
from packsched.window import WindowPlan

# Ranks that are asked, those with most free tokens first, and the trades that are planned with all of them.
_PARTNERS, _TRADES = 8, 32
# The shortest segments of a rank, which are offered alone and in pairs.
_MOST_ALONE, _MOST_IN_PAIRS = 1024, 40

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Trading:
    """Holds what a trade has to keep to.

    Attributes:
        lens: For each rank the tokens of its own segments.
        costs: The cost of each of these segments; all together below 2^62.
        tokens: The tokens that fit the packs of a rank.
        most_cost: The most that a rank may cost after a trade.
        plan: Plans the segments of a rank; None where they find no place.
    """

    lens: Sequence[Sequence[int]]
    costs: Sequence[Sequence[int]]
    tokens: int
    most_cost: int
    plan: Callable[[Sequence[HeldUnit]], WindowPlan | None]

    def place(self, held: Held, plans: list[WindowPlan | None]) -> None:
        """Trades segments of each rank without a plan until it has one (both lists change); some may stay without.

        Args:
            held: For each rank the segments that it holds.
            plans: For each rank its plan, or None.
        """
        for rank in range(len(plans)):
            if plans[rank] is not None:  # also where an earlier rank's trade has placed it
                continue
            used = [sum(_of(self.lens, here)) for here in held]
            others = sorted((other for other in range(len(held)) if other != rank), key=lambda at: (used[at], at))
            asked = others[:_PARTNERS]
            for other in asked:
                if self._trade(held, plans, rank, other, _TRADES // len(asked)):
                    break

    def _trade(self, held: Held, plans: list[WindowPlan | None], rank: int, other: int, tries: int) -> bool:
        used, used_there = (sum(_of(self.lens, held[one])) for one in (rank, other))
        spent, spent_there = (sum(_of(self.costs, held[one])) for one in (rank, other))
        mine, theirs = (
            sorted(held[one], key=lambda unit: (self.lens[unit[0]][unit[1]], unit))[:_MOST_ALONE]
            for one in (rank, other)
        )
        leaving, coming = _some(len(mine)), _some(len(theirs))
        goes, comes = _sums(_of(self.lens, mine), leaving), _sums(_of(self.lens, theirs), coming)
        goes_cost, comes_cost = _sums(_of(self.costs, mine), leaving), _sums(_of(self.costs, theirs), coming)
        moved = self._moved(mine, leaving, rank, other)[:, None] + self._moved(theirs, coming, other, rank)
        less, cheaper = goes[:, None] - comes, goes_cost[:, None] - comes_cost
        # Both keep some of the free tokens; a window without any is rarely placed.
        kept = max(0, 2 * self.tokens - used - used_there) // 4
        fits = (used - less <= self.tokens - kept) & (used_there + less <= self.tokens - kept) & (less != 0)
        fits &= spent - cheaper <= max(self.most_cost, spent)
        fits &= spent_there + cheaper <= max(self.most_cost, spent_there)
        fits[0, :] = fits[:, 0] = False
        rows, columns = np.nonzero(fits)
        for at in moved[rows, columns].argsort(kind="stable")[:tries].tolist():
            out = {mine[place] for place in leaving[rows[at]] if place >= 0}
            back = {theirs[place] for place in coming[columns[at]] if place >= 0}
            here = own_first(rank, [one for one in held[rank] if one not in out] + list(back))
            found = self.plan(here)
            if found is None:
                continue
            there = own_first(other, [one for one in held[other] if one not in back] + list(out))
            found_there = self.plan(there)
            if found_there is not None:
                held[rank], held[other], plans[rank], plans[other] = here, there, found, found_there
                return True
        return False

    def _moved(self, here: Sequence[HeldUnit], some: Ints, rank: int, to: int) -> Ints:
        """Returns the tokens that move more, or less where a segment comes home, if these leave `rank` for `to`."""
        sign = {rank: 1, to: -1}
        return _sums([sign.get(home, 0) * self.lens[home][at] for home, at in here], some)


def _of(values: Sequence[Sequence[int]], here: Sequence[HeldUnit]) -> list[int]:
    return [values[home][at] for home, at in here]


def _some(count: int) -> Ints:
    """Returns no segment, each, and each pair of the first of `count`; -1 fills up."""
    left, right = np.triu_indices(min(count, _MOST_IN_PAIRS), 1)
    single = np.stack([np.arange(-1, count), np.full(count + 1, -1)], axis=1)
    return np.concatenate([single, np.stack([left, right], axis=1)])


def _sums(values: Sequence[int], some: Ints) -> Ints:
    padded: Ints = np.array([*values, 0], dtype=np.int64)
    total: Ints = padded[some].sum(axis=1)
    return total
