"""Lets packs of different ranks exchange single segments: so that each has a place, and all ranks cost the same.

- A segment that fits none of its rank's packs goes into free room of another rank, or changes places with a shorter
  segment there. If its own length is a bad one to give, it takes the place of another segment of its rank, which goes.
- A rank that costs too much exchanges a segment for a cheaper one, or gives one away.

All other segments stay in their packs, so nothing is planned again.

Cost: an exchange compares the segments of one rank with those of the 128 cheapest ranks, in numpy; all ranks are asked
where these have no place.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

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


class _Offered(NamedTuple):
    """What the asked ranks have, in arrays: movable segments that lie in packs, and packs.

    Attributes:
        segments: The segments; `lens` are their tokens and `ranks` where they are.
        spent: What the rank of each costs without it.
        room: The tokens that its pack has room for without it.
        moved: The tokens that would move more, or less, if it came to the asking rank.
        packs: The packs; `pack_ranks`, `pack_room` and `pack_spent` are their ranks, free tokens, and ranks' costs.
    """

    segments: Ints
    lens: Ints
    ranks: Ints
    spent: Ints
    room: Ints
    moved: Ints
    packs: Ints
    pack_ranks: Ints
    pack_room: Ints
    pack_spent: Ints


class PackedRanks:
    """Holds which segment lies in which pack of which rank, and what each rank costs.

    Args:
        lens: For each rank the tokens of its own segments.
        costs: The cost of each of these segments.
        movable: For each rank, whether each of its segments may change its rank.
        held: For each rank the (from_rank, segment) pairs of the segments that it has now.
        packs: For each rank its packs, as indices into what it holds; None for a rank whose packs are opened later.
        packing_length: The cap of a pack.
        micro_steps: Packs of each rank.

    Attributes:
        changed: Ranks that have other segments, or other packs, than those with which they were opened.
    """

    def __init__(
        self,
        lens: Sequence[Sequence[int]],
        costs: Sequence[Sequence[int]],
        movable: Sequence[Sequence[bool]],
        held: Held,
        packs: Sequence[Sequence[Sequence[int]] | None],
        packing_length: int,
        micro_steps: int,
    ) -> None:
        self._first = np.cumsum([0, *map(len, lens)])
        self._lens = np.array(list(chain.from_iterable(lens)), dtype=np.int64)
        shift = max(0, sum(map(sum, costs)).bit_length() - _COST_BITS)
        self._costs = np.array([cost >> shift for cost in chain.from_iterable(costs)], dtype=np.int64)
        self._movable = np.array(list(chain.from_iterable(movable)), dtype=bool)
        self._home = np.repeat(np.arange(len(lens)), np.diff(self._first))
        self._cap, self._steps = packing_length, micro_steps
        flat = self._flat(list(chain.from_iterable(held)))
        sizes = [len(here) for here in held]
        self._rank = np.empty_like(self._home)
        self._rank[flat] = np.repeat(np.arange(len(lens)), sizes)
        closed: list[list[int]] = [[]] * micro_steps
        filled = [pack for of in packs for pack in (closed if of is None else of)]
        first = np.repeat(np.cumsum([0, *sizes[:-1]]), micro_steps)
        fill = [len(pack) for pack in filled]
        inside = flat[np.array(list(chain.from_iterable(filled)), dtype=np.int64) + np.repeat(first, fill)]
        self._pack = np.full(len(self._lens), _NONE)
        self._pack[inside] = np.repeat(np.arange(len(filled)), fill)
        self._slack = np.repeat([0 if of is None else packing_length for of in packs], micro_steps)
        np.subtract.at(self._slack, self._pack[inside], self._lens[inside])
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
        return [one for one, _ in self._held(rank, np.flatnonzero(self._rank == rank))]

    def held_and_packed(self, ranks: Sequence[int]) -> Iterator[tuple[int, list[HeldUnit], list[list[int]]]]:
        """Yields for each rank what it holds, as `held`, and its packs as indices into that."""
        by_rank = np.argsort(self._rank, kind="stable")
        starts = np.searchsorted(self._rank[by_rank], np.add([[0], [1]], ranks))
        for rank, start, end in zip(ranks, *starts.tolist(), strict=True):
            found = self._held(rank, by_rank[start:end])
            packs: list[list[int]] = [[] for _ in range(self._steps)]
            for index, (_, pack) in enumerate(found):
                packs[pack - rank * self._steps].append(index)
            yield rank, [one for one, _ in found], packs

    def _held(self, rank: int, flat: Ints) -> list[tuple[HeldUnit, int]]:
        """Returns the pair and the pack of each of these segments, the rank's own first."""
        homes = self._home[flat]
        units = zip(homes.tolist(), (flat - self._first[homes]).tolist(), strict=True)
        pack_of = dict(zip(units, self._pack[flat].tolist(), strict=True))
        return [(one, pack_of[one]) for one in own_first(rank, pack_of)]

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
            offered = self._offered(ranks[ranks != rank], rank)
            best = self._best_way(np.concatenate([[one], yielding]), rank, limit, offered)
            if best is not None:
                return best
        return None

    def _of(self, ranks: Ints) -> tuple[Ints, Ints]:
        """Returns the movable segments, and the packs, of the ranks."""
        asked = np.zeros(len(self._rank_costs), bool)
        asked[ranks] = True
        return np.flatnonzero(asked[self._rank] & self._movable), np.flatnonzero(np.repeat(asked, self._steps))

    def _offered(self, ranks: Ints, rank: int) -> _Offered:
        theirs, packs = self._of(ranks)
        theirs = theirs[self._pack[theirs] != _NONE]
        lens, now, home = self._lens[theirs], self._rank[theirs], self._home[theirs]
        return _Offered(
            segments=theirs,
            lens=lens,
            ranks=now,
            spent=self._rank_costs[now] - self._costs[theirs],
            room=lens + self._slack[self._pack[theirs]],
            moved=np.where(home == now, lens, np.where(home == rank, -lens, 0)),
            packs=packs,
            pack_ranks=packs // self._steps,
            pack_room=self._slack[packs],
            pack_spent=self._rank_costs[packs // self._steps],
        )

    def _best_way(self, leaving: Ints, rank: int, limit: int, offered: _Offered) -> _WayOut | None:
        """Compares all ways of all segments that may leave: the first, or one whose place the first takes."""
        own = slice(rank * self._steps, (rank + 1) * self._steps)
        lens, costs, homes = self._lens[leaving], self._costs[leaving], self._home[leaving]
        own_lens = np.where(homes == rank, lens, 0)
        room = np.tile(self._slack[own], (len(leaving), 1))
        room[np.arange(1, len(leaving)), self._pack[leaving[1:]] - own.start] += lens[1:] - lens[0]
        # Into another pack of the rank, the tightest.
        fits = room >= lens[:, None]
        who, pack = np.nonzero(fits)
        stays = [0 * who, 0 * who, leaving[who], room[who, pack], own.start + pack, 0 * who + _NONE]
        # Into a pack of another rank.
        away = np.flatnonzero(self._movable[leaving] & ~fits.any(axis=1))
        length, most = lens[away, None], limit - costs[away, None]
        who, at = np.nonzero((offered.pack_room >= length) & (offered.pack_spent <= most))
        who = away[who]
        moved = own_lens[who] - np.where(offered.pack_ranks[at] == homes[who], lens[who], 0)
        goes = [moved, 0 * who, leaving[who], offered.pack_room[at], offered.packs[at], 0 * who + _NONE]
        # For a segment that has room here, and leaves room enough where it was.
        who, at = np.nonzero(
            (offered.lens <= room[away].max(axis=1, keepdims=True)) & (offered.room >= length) & (offered.spent <= most)
        )
        who = away[who]
        moved = own_lens[who] - np.where(offered.ranks[at] == homes[who], lens[who], 0) + offered.moved[at]
        least = moved == moved.min(initial=_NEVER)  # of thousands few are left
        who, at, comes = who[least], at[least], offered.segments[at[least]]
        swaps = [moved[least], offered.lens[at], leaving[who], comes, self._pack[comes], comes]
        ways = np.concatenate([stays, goes, swaps], axis=1)
        if not ways.size:
            return None
        ways = ways[:, ways[0] == ways[0].min()]
        tokens, back, left, _, into, came = ways[:, np.lexsort(ways[4::-1])[0]].tolist()
        return tokens, back, left, into, came

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
