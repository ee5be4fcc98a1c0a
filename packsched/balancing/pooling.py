"""Places ranks whose window does not fit: gives one segment away, or plans the rank together with ranks with room.

Neither changes a rank that is not involved. The packs of a pool go back to the ranks that held most of their tokens,
unless a rank would then cost more than the costliest rank so far.
"""

from collections.abc import Callable, Iterator, Sequence

from packsched.balancing.exchange import Held, HeldUnit, own_first
from packsched.balancing.given import Groups
from packsched.window import WindowPlan

PlanRank = Callable[[Sequence[int], bool], WindowPlan | None]
"""Plans one rank's lengths; returns None if no plan is found. True marks one attempt of many, which gets less work."""
PlanPool = Callable[[Sequence[int], int], Sequence[Sequence[int]] | None]
"""Packs (of indices) the lengths of that many ranks; returns None if it finds no packs, or raises for all ranks."""
AdoptPacks = Callable[[Sequence[int], list[list[int]]], WindowPlan]
"""Turns packs that were found in a pool into the plan of one rank's lengths."""

# Ranks with most free tokens that are asked to take a segment.
_RECEIVERS = 8
# Ranks with most free tokens with which a rank is planned in pairs, before larger groups.
_PARTNERS = 16


def fit_every_rank(
    held: Held,
    lens: Sequence[Sequence[int]],
    costs: Sequence[Sequence[int]],
    micro_steps: int,
    plans: list[WindowPlan | None],
    plan: PlanRank,
    pool: PlanPool,
    adopt: AdoptPacks,
    groups: Groups | None = None,
) -> list[WindowPlan]:
    """Plans the ranks that have no plan; they exchange segments with others (`held` and `plans` change).

    Every rank that cannot be placed tries its segments, shortest first. The first without which it can be placed goes
    to the rank with the most free tokens that can still be placed with it; if there is none, the longest goes. If no
    rank can take it, the rank is planned together with one of the roomiest other ranks, else with two of them, then
    with twice as many until it fits. The packs of a pool are the plan of a rank for which `plan` finds none.

    Segments of one group go together; then `pool` is asked about all ranks alone, and raises.
    """
    for rank in range(len(held)):
        while plans[rank] is None:
            moved, without = _one_less(held[rank], lens, plan, groups)
            receiver = _receiver(moved, rank, held, lens, plans, plan)
            if receiver is not None:
                held[rank] = [one for one in held[rank] if one not in moved]
                plans[rank] = without
            elif groups is not None:
                pool([length for rank_lens in lens for length in rank_lens], len(lens))
            else:
                _pool(rank, held, lens, costs, micro_steps, plans, plan, pool, adopt)
    return [found for found in plans if found is not None]


def _lengths(here: Sequence[HeldUnit], lens: Sequence[Sequence[int]]) -> list[int]:
    return [lens[rank][at] for rank, at in here]


def _one_less(
    here: Sequence[HeldUnit], lens: Sequence[Sequence[int]], plan: PlanRank, groups: Groups | None
) -> tuple[list[HeldUnit], WindowPlan | None]:
    """Finds the shortest segment (or group) without which the rank can be placed, and that plan; else the longest."""
    together: dict[object, list[HeldUnit]] = {}
    for rank, at in here:
        together.setdefault((rank, at if groups is None else groups[rank][at]), []).append((rank, at))
    by_length = sorted(together.values(), key=lambda units: (sum(_lengths(units, lens)), units))
    for units in by_length:
        found = plan(_lengths([one for one in here if one not in units], lens), True)
        if found is not None:
            return units, found
    return by_length[-1], None


def _receiver(
    moved: Sequence[HeldUnit],
    giver: int,
    held: Held,
    lens: Sequence[Sequence[int]],
    plans: list[WindowPlan | None],
    plan: PlanRank,
) -> int | None:
    """Gives the segments to a rank that can be placed with them; returns the rank, or None."""
    for rank in _roomiest_first(held, lens)[:_RECEIVERS]:
        if rank != giver and plans[rank] is not None:
            here = own_first(rank, [*held[rank], *moved])
            found = plan(_lengths(here, lens), True)
            if found is not None:
                held[rank], plans[rank] = here, found
                return rank
    return None


def _roomiest_first(held: Held, lens: Sequence[Sequence[int]]) -> list[int]:
    tokens = [sum(_lengths(here, lens)) for here in held]
    return sorted(range(len(held)), key=tokens.__getitem__)


def _pool(
    rank: int,
    held: Held,
    lens: Sequence[Sequence[int]],
    costs: Sequence[Sequence[int]],
    micro_steps: int,
    plans: list[WindowPlan | None],
    plan: PlanRank,
    pool: PlanPool,
    adopt: AdoptPacks,
) -> None:
    """Plans the rank together with as few others as possible; each keeps as many of its segments as possible."""
    others = [other for other in _roomiest_first(held, lens) if other != rank]
    limit = max(sum(costs[from_rank][at] for from_rank, at in here) for here in held)
    for group in _groups(rank, others):
        segments = [one for member in group for one in held[member]]
        packs = pool(_lengths(segments, lens), len(group))
        if packs is not None:
            break
    assert packs is not None  # the last group is all ranks, for which `pool` raises
    in_packs = [[segments[index] for index in pack] for pack in packs if pack]
    shares = _share_out(in_packs, group, held, lens, costs, limit, micro_steps)
    for member, its_packs in zip(group, shares, strict=True):
        here = own_first(member, [one for pack in its_packs for one in pack])
        place = {one: index for index, one in enumerate(here)}
        held[member] = here
        plans[member] = plan(_lengths(here, lens), True) or adopt(
            _lengths(here, lens), [[place[one] for one in pack] for pack in its_packs]
        )


def _groups(rank: int, others: Sequence[int]) -> Iterator[list[int]]:
    """Yields the rank with each of the roomiest others, then with the roomiest 2, 4, 8, ... of them, and last all."""
    for other in others[:_PARTNERS]:
        yield [rank, other]
    size = 2
    while size < len(others):
        yield [rank, *others[:size]]
        size *= 2
    yield [rank, *others]


def _share_out(
    packs: Sequence[list[HeldUnit]],
    group: Sequence[int],
    held: Held,
    lens: Sequence[Sequence[int]],
    costs: Sequence[Sequence[int]],
    limit: int,
    micro_steps: int,
) -> list[list[list[HeldUnit]]]:
    """Gives each rank of the group at most `micro_steps` packs: most kept tokens first, within `limit` if possible.

    A pack that would bring its first choice over `limit` goes, costliest first, to the cheapest rank with a step left.
    """
    holder = {one: place for place, member in enumerate(group) for one in held[member]}
    kept = sorted(
        (-sum(lens[rank][at] for rank, at in pack if holder[rank, at] == place), number, place)
        for number, pack in enumerate(packs)
        for place in {holder[one] for one in pack}
    )
    pack_costs = [sum(costs[rank][at] for rank, at in pack) for pack in packs]
    shares: list[list[list[HeldUnit]]] = [[] for _ in group]
    spent = [0] * len(group)
    left = set(range(len(packs)))

    def give(number: int, place: int) -> None:
        shares[place].append(packs[number])
        spent[place] += pack_costs[number]
        left.remove(number)

    for _, number, place in kept:
        if number in left and len(shares[place]) < micro_steps and spent[place] + pack_costs[number] <= limit:
            give(number, place)
    for number in sorted(left, key=lambda number: (-pack_costs[number], number)):
        free = [place for place in range(len(group)) if len(shares[place]) < micro_steps]
        give(number, min(free, key=lambda place: (spent[place], place)))
    return shares
