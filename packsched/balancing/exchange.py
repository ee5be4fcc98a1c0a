"""Assigns units to ranks, so that all ranks cost the same and none holds more tokens than fit its packs.

A unit is a segment, or a group of segments that has to stay on one rank.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

from packsched.subset_sum import fill_room

HeldUnit = tuple[int, int]
"""A unit of any rank: (from_rank, unit), where `unit` is its index among the units of `from_rank`."""
Held = list[list[HeldUnit]]
"""For each rank the units that it holds, in the order of `own_first`."""

# How far above the mean a rank may cost, in thousandths: the first limit under which everything fits is used.
_LIMITS = (10, 15)
# Costs are counted in this many parts of the limit where a rank decides what to keep.
_PARTS = 4096


def level_ranks(lens: Sequence[Sequence[int]], costs: Sequence[Sequence[int]], tokens: int) -> Held:
    """Assigns units so that every rank costs about the mean and, where possible, holds at most `tokens`.

    Where not all units that have to leave their ranks fit elsewhere below the limit, those that do not fit stay.

    Args:
        lens: For each rank the tokens of its units.
        costs: The cost of each of these units.
        tokens: The most tokens that a rank can hold.

    Cost: `O(N log N)` for N units, for each limit tried.

    Source: keep-and-give is the greedy of B. Hendrickson and K. Devine, "Dynamic load balancing in computational
    mechanics", CMAME 184 (2000); receivers are chosen by best-fit decreasing.
    """
    spent = list(map(sum, costs))
    used = list(map(sum, lens))
    total = sum(spent)
    dearest = max((max(rank) for rank in costs if rank), default=0)
    for permille in _LIMITS:
        limit = max(-(-total * (1000 + permille) // (1000 * len(lens))), dearest)
        for keep_short in (True, False):
            held = _level_to(lens, costs, spent, used, limit, tokens, keep_short)
            if held is not None:
                return held
    held = _level_to(lens, costs, spent, used, limit, tokens, keep_short=False, whole=False)
    assert held is not None
    return held


def own_first(rank: int, units: Iterable[HeldUnit]) -> list[HeldUnit]:
    """Sorts the units of `rank` first, then those of other ranks; both in order."""
    ordered = sorted(units)
    own = [one for one in ordered if one[0] == rank]
    return own if len(own) == len(ordered) else own + [one for one in ordered if one[0] != rank]


def _level_to(
    lens: Sequence[Sequence[int]],
    costs: Sequence[Sequence[int]],
    spent: Sequence[int],
    used: Sequence[int],
    limit: int,
    tokens: int,
    keep_short: bool,
    whole: bool = True,
) -> Held | None:
    """Returns None if a unit finds no place; if not `whole`, it stays in its rank, and givers receive nothing.

    `spent` and `used` are the sums of each rank's costs and lengths.
    """
    kept: dict[int, list[int]] = {}  # of the ranks that give something away
    given: list[tuple[int, int, int]] = []  # (-cost, rank, unit)
    rooms: list[tuple[int, int]] = []  # (cost that still fits, rank), ascending
    free = [tokens - rank_used for rank_used in used]
    for rank, cost in enumerate(spent):
        if cost > limit or free[rank] < 0:
            kept[rank] = _keep(lens[rank], costs[rank], limit, tokens, keep_short)
            staying = set(kept[rank])
            leaving = [at for at in range(len(lens[rank])) if at not in staying]
            given += [(-costs[rank][at], rank, at) for at in leaving]
            cost -= sum([costs[rank][at] for at in leaving])
            free[rank] += sum([lens[rank][at] for at in leaving])
            if not whole and leaving:
                continue
        rooms.append((limit - cost, rank))
    rooms.sort()
    received: Held = [[] for _ in lens]
    for minus_cost, rank, at in sorted(given):
        length = lens[rank][at]
        place = bisect_left(rooms, (-minus_cost, -1))
        # Nearly full ranks may have room for its cost and not for its tokens; all are asked.
        while place < len(rooms) and free[rooms[place][1]] < length:
            place += 1
        if place == len(rooms):
            if whole:
                return None
            received[rank].append((rank, at))
            continue
        room, to = rooms.pop(place)
        received[to].append((rank, at))
        free[to] -= length
        insort(rooms, (room + minus_cost, to))
    held = [[(rank, at) for at in kept.get(rank, range(len(rank_lens)))] for rank, rank_lens in enumerate(lens)]
    # A rank may receive one of the units that it gave.
    for rank, new in enumerate(received):
        if new:
            held[rank] = own_first(rank, held[rank] + new)
    return held


def _keep(rank_lens: Sequence[int], costs: Sequence[int], limit: int, tokens: int, keep_short: bool) -> list[int]:
    """Chooses the units a rank keeps: as much cost as the limit allows, and no more tokens than fit its packs.

    Giving long units away moves the fewest tokens, since they cost most a token; short ones fit into more ranks.
    """
    part = limit // _PARTS + 1
    order = sorted(range(len(rank_lens)), key=rank_lens.__getitem__, reverse=not keep_short)
    kept = [order[at] for at in fill_room([-(-costs[at] // part) for at in order], limit // part, _PARTS // 512)]
    over = sum(rank_lens[at] for at in kept) - tokens
    while over > 0:
        shortest_enough = min((at for at in kept if rank_lens[at] >= over), key=rank_lens.__getitem__, default=kept[0])
        kept.remove(shortest_enough)
        over -= rank_lens[shortest_enough]
    return sorted(kept)
