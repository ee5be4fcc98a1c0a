"""Lets packs of different ranks exchange single segments: so that each has a place, and all ranks cost the same.

- A segment that fits none of its rank's packs goes into free room of another rank, or changes places with a shorter
  segment there. If its own length is a bad one to give, it takes the place of another segment of its rank, which goes.
- A rank that costs too much exchanges a segment for a cheaper one, or gives one away.

All other segments stay in their packs, so nothing is planned again.

Cost: an exchange compares the segments of one rank with those of the 128 cheapest ranks, in numpy; all ranks are asked
where these have no place.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from packsched.balancing.exchange import Held, HeldUnit, own_first

_NONE = -1
# The cheapest ranks, which are asked for an exchange first.
_PARTNERS = 128
# Costs are scaled down to at most so many bits in all, so that no sum overflows.
_COST_BITS = 60
_NEVER = np.iinfo(np.int64).max

Ints = NDArray[np.int64]
_WayOut = tuple[int, int, int, int, int]
"""Tokens that move, length of what comes back, what leaves, the pack it goes into, and what comes back or _NONE."""


class PackedRanks:
    """Holds which segment lies in which pack of which rank, and what each rank costs.

    Args:
        lens: For each rank the tokens of its own segments.
        costs: The cost of each of these segments.
        movable: For each rank, whether each of its segments may change its rank.
        held: For each rank the (from_rank, segment) pairs of the segments that it has now.
        packing_length: The cap of a pack.
        micro_steps: Packs of each rank. A rank has none until they are opened.

    Attributes:
        changed: Ranks that have other segments, or other packs, than those with which they were opened.
    """

    def __init__(
        self,
        lens: Sequence[Sequence[int]],
        costs: Sequence[Sequence[int]],
        movable: Sequence[Sequence[bool]],
        held: Held,
        packing_length: int,
        micro_steps: int,
    ) -> None:
        self._first = np.cumsum([0, *map(len, lens)])
        self._lens = np.array(list(chain.from_iterable(lens)), dtype=np.int64)
        shift = max(0, sum(map(sum, costs)).bit_length() - _COST_BITS)
        self._costs = np.array([cost >> shift for cost in chain.from_iterable(costs)], dtype=np.int64)
        self._movable = np.array(list(chain.from_iterable(movable)), dtype=bool)
        self._home = np.repeat(np.arange(len(lens)), np.diff(self._first))
        self._rank = self._home.copy()
        for rank, here in enumerate(held):
            self._rank[self._flat(here)] = rank
        self._pack = np.full(len(self._lens), _NONE)
        self._cap, self._steps = packing_length, micro_steps
        self._slack = np.zeros(len(lens) * micro_steps, np.int64)
        self._rank_costs = np.zeros(len(lens), np.int64)
        np.add.at(self._rank_costs, self._rank, self._costs)
        self.changed: set[int] = set()

    def open(self, rank: int, here: Sequence[HeldUnit], packs: Sequence[Sequence[int]]) -> None:
        """Puts segments of a rank into its packs: indices into `here`. Segments in no pack are left out."""
        flat = self._flat(here)
        first = rank * self._steps
        self._slack[first : first + self._steps] = self._cap
        for pack, indices in enumerate(packs, first):
            if len(indices):
                inside = flat[np.array(indices)]
                self._pack[inside] = pack
                self._slack[pack] -= self._lens[inside].sum()

    def place(self, rank: int, most: int | None) -> bool:
        """Finds places for the segments of a rank that are in none of its packs, the longest first.

        Args:
            rank: A rank that is open.
            most: The most that another rank may cost afterwards, in thousandths of the mean; None for any cost.

        Returns:
            Whether every segment has a place. If not, nothing has changed, and the rank is no longer open.
        """
        names = ("_rank", "_pack", "_slack", "_rank_costs", "changed")
        saved = {name: getattr(self, name).copy() for name in names}
        limit = _NEVER if most is None else self._share_of_mean(most)
        outside = np.flatnonzero((self._rank == rank) & (self._pack == _NONE))
        for one in outside[np.argsort(-self._lens[outside], kind="stable")].tolist():
            way = self._way_out(one, rank, limit)
            if way is None:
                for name, value in saved.items():
                    setattr(self, name, value)
                self._pack[self._rank == rank] = _NONE
                self._slack[rank * self._steps : (rank + 1) * self._steps] = 0
                return False
            self._go(one, rank, way)
        return True

    def level(self, most: int) -> None:
        """Lets the costliest rank exchange segments until it costs at most `most` thousandths of the mean.

        Ends when no exchange helps, or after four exchanges for each rank.
        """
        target = self._share_of_mean(most)
        for _ in range(4 * len(self._rank_costs)):
            top = int(self._rank_costs.argmax())
            if self._rank_costs[top] <= target or not self._relieve(top, target):
                return

    def held(self, rank: int) -> list[HeldUnit]:
        """Returns the (from_rank, segment) pairs of a rank, its own first."""
        flat = np.flatnonzero(self._rank == rank)
        homes = self._home[flat]
        return own_first(rank, zip(homes.tolist(), (flat - self._first[homes]).tolist(), strict=True))

    def packs(self, rank: int, here: Sequence[HeldUnit]) -> list[list[int]]:
        """Returns the packs of a rank, as indices into `here`."""
        packs: list[list[int]] = [[] for _ in range(self._steps)]
        for index, pack in enumerate((self._pack[self._flat(here)] - rank * self._steps).tolist()):
            packs[pack].append(index)
        return packs

    def _flat(self, here: Sequence[HeldUnit]) -> Ints:
        pairs = np.array(here, dtype=np.int64).reshape(-1, 2)
        return self._first[pairs[:, 0]] + pairs[:, 1]

    def _share_of_mean(self, permille: int) -> int:
        return -(-int(self._rank_costs.sum()) * permille // (1000 * len(self._rank_costs)))

    def _put(self, one: int, pack: int) -> None:
        """Takes a segment out of its pack, if it has one, and puts it into another."""
        old, new = int(self._rank[one]), pack // self._steps
        if self._pack[one] != _NONE:
            self._slack[self._pack[one]] += self._lens[one]
        self._rank_costs[old] -= self._costs[one]
        self._rank_costs[new] += self._costs[one]
        self._rank[one], self._pack[one] = new, pack
        self._slack[pack] -= self._lens[one]
        self.changed |= {old, new}

    def _way_out(self, one: int, rank: int, limit: int) -> _WayOut | None:
        """Finds the place for a segment, or for one whose place it takes, that moves the fewest tokens."""
        mine = np.flatnonzero((self._rank == rank) & (self._pack != _NONE))
        yielding = mine[self._lens[mine] + self._slack[self._pack[mine]] >= self._lens[one]]
        cheapest_first = self._rank_costs.argsort(kind="stable")
        for ranks in (cheapest_first[:_PARTNERS], cheapest_first[_PARTNERS:]):
            theirs, packs = self._of(ranks[ranks != rank])
            theirs = theirs[self._pack[theirs] != _NONE]
            ways = [self._way_of(leaving, one, rank, limit, theirs, packs) for leaving in (one, *yielding.tolist())]
            best = min((way for way in ways if way is not None), default=None)
            if best is not None:
                return best
        return None

    def _of(self, ranks: Ints) -> tuple[Ints, Ints]:
        """Returns the movable segments, and the packs, of the ranks."""
        asked = np.zeros(len(self._rank_costs), bool)
        asked[ranks] = True
        return np.flatnonzero(asked[self._rank] & self._movable), np.flatnonzero(np.repeat(asked, self._steps))

    def _way_of(self, leaving: int, one: int, rank: int, limit: int, theirs: Ints, packs: Ints) -> _WayOut | None:
        own = slice(rank * self._steps, (rank + 1) * self._steps)
        room = self._slack[own].copy()
        if leaving != one:
            room[self._pack[leaving] - own.start] += self._lens[leaving] - self._lens[one]
        length, cost = int(self._lens[leaving]), self._costs[leaving]
        tightest = int(np.where(room >= length, room, _NEVER).argmin())
        if room[tightest] >= length:
            return 0, 0, leaving, own.start + tightest, _NONE
        if not self._movable[leaving]:
            return None
        moved = length if self._home[leaving] == rank else 0
        ways: list[_WayOut] = []
        roomy = packs[(self._slack[packs] >= length) & (self._rank_costs[packs // self._steps] + cost <= limit)]
        if len(roomy):
            gained = np.where(roomy // self._steps == self._home[leaving], length, 0)
            best = int(roomy[np.lexsort((self._slack[roomy], -gained))[0]])
            ways.append((moved - int(gained.max()), 0, leaving, best, _NONE))
        # What comes back has room here, and leaves room enough where it was.
        back = theirs[
            (self._lens[theirs] <= room.max())
            & (self._lens[theirs] + self._slack[self._pack[theirs]] >= length)
            & (self._rank_costs[self._rank[theirs]] + cost - self._costs[theirs] <= limit)
        ]
        if len(back):
            lens = self._lens[back]
            more = np.where(self._home[back] == self._rank[back], lens, np.where(self._home[back] == rank, -lens, 0))
            more -= np.where(self._rank[back] == self._home[leaving], length, 0)
            best = int(np.lexsort((lens, more))[0])
            ways.append(
                (moved + int(more[best]), int(lens[best]), leaving, int(self._pack[back[best]]), int(back[best]))
            )
        return min(ways, default=None)

    def _go(self, one: int, rank: int, way: _WayOut) -> None:
        _, _, leaving, pack, back = way
        place = int(self._pack[leaving])
        if back != _NONE:
            # First out of its pack, so that the pack never exceeds the cap; then into the roomiest pack here.
            self._slack[pack] += self._lens[back]
            self._pack[back] = _NONE
        self._put(leaving, pack)
        if leaving != one:
            self._put(one, place)
        if back != _NONE:
            first = rank * self._steps
            self._put(back, first + int(self._slack[first : first + self._steps].argmax()))

    def _relieve(self, top: int, target: int) -> bool:
        """Exchanges a segment of the costliest rank for a cheaper one, or gives it away; returns whether it helped.

        Of the exchanges after which both ranks are lowest, or below `target`, it takes one that moves few tokens.
        """
        cheapest = self._rank_costs.argsort(kind="stable")[:_PARTNERS]
        mine, _ = self._of(np.array([top]))
        theirs, packs = self._of(cheapest[cheapest != top])
        lens, costs, room = (
            values[:, None] for values in (self._lens[mine], self._costs[mine], self._slack[self._pack[mine]])
        )
        less = costs - self._costs[theirs]
        other_lens, other_room = self._lens[theirs], self._slack[self._pack[theirs]]
        fits = (other_lens <= lens + room) & (lens <= other_lens + other_room)
        swapped = np.maximum(self._rank_costs[top] - less, self._rank_costs[self._rank[theirs]] + less)
        given = np.maximum(self._rank_costs[top] - costs, self._rank_costs[packs // self._steps] + costs)
        highest = np.concatenate(
            [np.where(fits & (less > 0), swapped, _NEVER), np.where(lens <= self._slack[packs], given, _NEVER)], axis=1
        )
        if not highest.size or highest.min() >= self._rank_costs[top]:
            return False
        leaves = np.where(self._home[mine] == top, self._lens[mine], 0)[:, None]
        comes = np.concatenate([np.where(self._home[theirs] == self._rank[theirs], other_lens, 0), 0 * packs])
        best = np.maximum(highest, target)
        moved = np.where(best == best.min(), leaves + comes, _NEVER)
        row, column = divmod(int(moved.argmin()), moved.shape[1])
        one, place = int(mine[row]), int(self._pack[mine[row]])
        if column < len(theirs):
            other = int(theirs[column])
            pack = int(self._pack[other])
            self._put(other, place)
        else:
            pack = int(packs[column - len(theirs)])
        self._put(one, pack)
        return True
