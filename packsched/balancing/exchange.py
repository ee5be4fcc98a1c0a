"""Assigns segments to ranks, so that all ranks cost the same and none holds more tokens than fit its packs."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

from packsched.subset_sum import fill_room

HeldSegment = tuple[int, int]
"""A segment of any rank: (from_rank, segment), where `segment` is its index in the lengths of `from_rank`."""
Held = list[list[HeldSegment]]
"""For each rank the segments that it holds, in the order of `own_first`."""

# How far above the mean a rank may cost, in thousandths: the first limit under which everything fits is used.
_LIMITS = (10, 15, 20, 25, 30, 40, 60, 100, 200, 400, 1000)
# Costs are counted in this many units of the limit where a rank decides what to keep.
_UNITS = 4096
# Ranks with enough room for a segment's cost that are asked whether they have room for its tokens.
_MOST_RECEIVERS = 64


def level_ranks(lens: Sequence[Sequence[int]], table: dict[int, int], tokens: int) -> Held:
    """Assigns segments so that every rank costs about the mean and, where possible, holds at most `tokens`.

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


def own_first(rank: int, segments: Iterable[HeldSegment]) -> list[HeldSegment]:
    """Sorts the segments of `rank` first, then those of other ranks; both in order."""
    return sorted(segments, key=lambda one: (one[0] != rank, one))


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
    # A rank may receive one of the segments that it gave.
    return [own_first(rank, own + new) for rank, (own, new) in enumerate(zip(held, received, strict=True))]


def _keep(rank_lens: Sequence[int], table: dict[int, int], limit: int, tokens: int, keep_short: bool) -> list[int]:
    """Chooses the segments a rank keeps: as much cost as the limit allows, and no more tokens than fit its packs.

    Giving long segments away moves the fewest tokens, since they cost most a token; short ones fit into more ranks.
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
