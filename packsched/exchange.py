"""Which rank holds which segment: leveling costs, and giving way where a window cannot be placed."""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from typing import TypeVar

from packsched.subset_sum import fill_room

Held = list[list[tuple[int, int]]]
"""For each rank the (from_rank, segment) it holds, its own first."""

_Plan = TypeVar("_Plan")

# How far above the mean a rank may cost, in thousandths: the first limit under which everything fits is used.
_LIMITS = (10, 15, 20, 25, 30, 40, 60, 100, 200, 400, 1000)
# Costs are counted in this many units of the limit where a rank decides what to keep.
_UNITS = 4096
# Ranks with enough room for a segment's cost that are asked whether they have room for its tokens.
_MOST_RECEIVERS = 64


def level_ranks(lens: Sequence[Sequence[int]], table: dict[int, int], tokens: int) -> Held:
    """Who holds what, so that every rank costs about the mean and holds at most `tokens` where that is possible.

    Cost: `O(N log N)` for N segments, for each limit tried.

    Source: keep-and-give is the greedy of B. Hendrickson and K. Devine, "Dynamic load balancing in computational
    mechanics", CMAME 184 (2000); receivers are chosen by best-fit decreasing.
    """
    total = sum(table[length] for rank in lens for length in rank)
    dearest = max((table[length] for rank in lens for length in rank), default=0)
    for permille in _LIMITS:
        limit = max(-(-total * (1000 + permille) // (1000 * len(lens))), dearest)
        for keep_short in (True, False):
            held = _level_to(lens, table, limit, tokens, keep_short)
            if held is not None:
                return held
    return [[(rank, at) for at in range(len(lens[rank]))] for rank in range(len(lens))]


def _level_to(
    lens: Sequence[Sequence[int]], table: dict[int, int], limit: int, tokens: int, keep_short: bool
) -> Held | None:
    held: Held = []
    given: list[tuple[int, int, int]] = []  # (-cost, rank, segment)
    rooms: list[tuple[int, int]] = []  # (cost that still fits, rank), ascending
    free: list[int] = []
    for rank, rank_lens in enumerate(lens):
        cost = sum(map(table.__getitem__, rank_lens))
        used = sum(rank_lens)
        kept = list(range(len(rank_lens)))
        if cost > limit or used > tokens:
            kept = _keep(rank_lens, table, limit, tokens, keep_short)
            staying = set(kept)
            given += [(-table[rank_lens[at]], rank, at) for at in range(len(rank_lens)) if at not in staying]
            cost = sum(table[rank_lens[at]] for at in kept)
            used = sum(rank_lens[at] for at in kept)
        held.append([(rank, at) for at in kept])
        rooms.append((limit - cost, rank))
        free.append(tokens - used)
    rooms.sort()
    received: Held = [[] for _ in lens]
    for minus_cost, rank, at in sorted(given):
        length = lens[rank][at]
        place = bisect_left(rooms, (-minus_cost, -1))
        last = min(len(rooms), place + _MOST_RECEIVERS)
        while place < last and free[rooms[place][1]] < length:
            place += 1
        if place == last:
            return None
        room, to = rooms.pop(place)
        received[to].append((rank, at))
        free[to] -= length
        insort(rooms, (room + minus_cost, to))
    return [own + sorted(new) for own, new in zip(held, received, strict=True)]


def _keep(rank_lens: Sequence[int], table: dict[int, int], limit: int, tokens: int, keep_short: bool) -> list[int]:
    """The segments a rank keeps: as much cost as the limit allows, and no more tokens than fit its packs.

    Giving the long ones away moves the fewest tokens, since they cost most a token; short ones fit elsewhere.
    """
    unit = limit // _UNITS + 1
    order = sorted(range(len(rank_lens)), key=rank_lens.__getitem__, reverse=not keep_short)
    in_units = [-(-table[rank_lens[at]] // unit) for at in order]
    kept = [order[at] for at in fill_room(in_units, limit // unit, enough=_UNITS // 512)]
    over = sum(rank_lens[at] for at in kept) - tokens
    while over > 0:
        shortest_enough = min((at for at in kept if rank_lens[at] >= over), key=rank_lens.__getitem__, default=kept[0])
        kept.remove(shortest_enough)
        over -= rank_lens[shortest_enough]
    return sorted(kept)


def fit_every_rank(
    held: Held, lens: Sequence[Sequence[int]], plan: Callable[[Sequence[int]], _Plan | None]
) -> list[_Plan] | None:
    """A plan for every rank; ranks that cannot be placed first give segments away (`held` changes). None: failed.

    Every rank in trouble tries its segments shortest first: one whose loss helps goes to the rank with the most
    free tokens that can still be placed with it; when none helps alone, the longest goes.
    """
    plans = [plan([lens[rank][at] for rank, at in here]) for here in held]
    for rank in range(len(held)):
        while plans[rank] is None:
            by_length = sorted(held[rank], key=lambda one: (lens[one[0]][one[1]], one))
            rest = by_length[-1:]
            for one in by_length:
                plans[rank] = plan([lens[r][at] for r, at in held[rank] if (r, at) != one])
                if plans[rank] is not None:
                    rest = [one]
                    break
            moved = rest[0]
            held[rank].remove(moved)
            if not _give(moved, rank, held, lens, plans, plan):
                return None
    return [found for found in plans if found is not None]


def _give(
    moved: tuple[int, int],
    giver: int,
    held: Held,
    lens: Sequence[Sequence[int]],
    plans: list[_Plan | None],
    plan: Callable[[Sequence[int]], _Plan | None],
) -> bool:
    tokens = [sum(lens[rank][at] for rank, at in here) for here in held]
    for rank in sorted(range(len(held)), key=tokens.__getitem__)[:8]:
        if rank != giver and plans[rank] is not None:
            here = sorted([*held[rank], moved], key=lambda one: (one[0] != rank, one))
            found = plan([lens[r][at] for r, at in here])
            if found is not None:
                held[rank], plans[rank] = here, found
                return True
    return False


def pool_all_ranks(lens: Sequence[Sequence[int]], packs: Sequence[Sequence[int]], micro_steps: int) -> Held:
    """Who holds what when all ranks are planned as one window: each pack goes where most of its tokens are.

    `packs` index the segments of all ranks one after the other; no rank gets more than `micro_steps` of them.
    """
    owners = [(rank, at) for rank, rank_lens in enumerate(lens) for at in range(len(rank_lens))]
    held: Held = [[] for _ in lens]
    left = [micro_steps] * len(lens)
    for pack in packs:
        tokens = [0] * len(lens)
        for index in pack:
            rank, at = owners[index]
            tokens[rank] += lens[rank][at]
        rank = max(
            (rank for rank in range(len(lens)) if left[rank]), key=lambda rank: (tokens[rank], left[rank], -rank)
        )
        left[rank] -= 1
        held[rank] += [owners[index] for index in pack]
    return [sorted(here, key=lambda one: (one[0] != rank, one)) for rank, here in enumerate(held)]
