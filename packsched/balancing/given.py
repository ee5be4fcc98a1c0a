"""Checks and holds what all ranks have before anything moves, and the bounds that no plan of it can beat."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import SupportsIndex

from packsched.arguments import check_ordered, checked_count, checked_lengths
from packsched.balancing.bounds import least_given
from packsched.costs import checked_costs, costs_by_length
from packsched.errors import PackingError
from packsched.planner.levelling import load_bound

Cost = Callable[[int], int] | Sequence[Sequence[SupportsIndex]]
"""The cost of a segment by its length; or, for each rank, the cost of each of its segments."""

Groups = Sequence[Sequence[int]]
"""For each rank the group of each of its segments; the segments of a group stay on one rank."""


@dataclass(frozen=True)
class GivenWindow:
    """Holds the checked lengths and costs of all ranks' segments.

    Attributes:
        lens: For each rank the tokens of its segments.
        costs: The cost of each of these segments.
        groups: The group of each; None where every segment may change its rank alone.
        packing_length: The cap of a pack.
    """

    lens: Sequence[Sequence[int]]
    costs: Sequence[Sequence[int]]
    groups: Groups | None
    packing_length: int

    @cached_property
    def units(self) -> list[list[list[int]]]:
        """Returns for each rank what moves together: the segments of each group, ordered by their first segment."""
        if self.groups is None:
            return [[[at] for at in range(len(rank_lens))] for rank_lens in self.lens]
        return [_members(rank_groups) for rank_groups in self.groups]

    def of_units(self, values: Sequence[Sequence[int]]) -> list[list[int]]:
        """Adds up the lengths, or the costs, of the segments of each unit."""
        return [[sum(rank[at] for at in unit) for unit in of] for rank, of in zip(values, self.units, strict=True)]

    def least_cost(self) -> int:
        """Returns a lower bound of the costliest rank's cost, however the units are distributed. `O(N log N)`."""
        costs = self.costs if self.groups is None else self.of_units(self.costs)
        dearest = sorted(chain.from_iterable(costs), reverse=True)
        return load_bound(dearest, len(costs)) if dearest else 0

    def least_given(self, givers: Sequence[int], limit: int, micro_steps: int) -> int:
        """Returns a lower bound of the tokens that have to leave these ranks, none of which may cost over `limit`."""
        return sum(
            least_given(self.lens[rank], self.costs[rank], limit, self.packing_length, micro_steps) for rank in givers
        )


def checked_lens_of_ranks(
    encoded_lens_by_rank: Iterable[Iterable[SupportsIndex]], packing_length: int
) -> list[list[int]]:
    """Returns the lengths of each rank's segments, or refuses them."""
    check_ordered("encoded_lens_by_rank is", encoded_lens_by_rank, "sequences of lengths, one for each rank")
    lens = [
        _of_rank(rank, checked_lengths, rank_lens, packing_length)
        for rank, rank_lens in enumerate(encoded_lens_by_rank)
    ]
    if not lens:
        raise PackingError("there are no ranks; encoded_lens_by_rank holds one sequence of lengths for each rank.")
    return lens


def checked_costs_of_ranks(cost: Cost, lens: Sequence[Sequence[int]]) -> list[list[int]]:
    """Returns the cost of each segment of each rank, or refuses them."""
    if callable(cost):
        table = costs_by_length(cost, chain.from_iterable(lens))
        return [list(map(table.__getitem__, rank)) for rank in lens]
    check_ordered("cost is", cost, "sequences of costs, one for each rank")
    if len(cost) != len(lens):
        raise PackingError(f"cost holds {len(cost)} ranks, but there are {len(lens)}.")
    return [_of_rank(rank, checked_costs, cost[rank], len(rank_lens)) for rank, rank_lens in enumerate(lens)]


def checked_groups(groups: Sequence[Sequence[SupportsIndex]] | None, lens: Sequence[Sequence[int]]) -> Groups | None:
    """Returns the group of each segment of each rank, or refuses them."""
    if groups is None:
        return None
    check_ordered("groups is", groups, "sequences of integers, one for each rank")
    if [len(rank) for rank in groups] != [len(rank) for rank in lens]:
        raise PackingError(
            f"groups holds {[len(rank) for rank in groups]} segments for the ranks, but they have "
            f"{[len(rank) for rank in lens]}; give one integer for each segment."
        )
    return [[checked_count("a group", group, minimum=0) for group in rank] for rank in groups]


def _of_rank(rank: int, check: Callable[..., list[int]], *arguments: object) -> list[int]:
    try:
        return check(*arguments)
    except PackingError as error:
        refused = error.with_message(f"rank {rank}: {error}")
        refused.rank = rank
        raise refused from None


def _members(groups: Sequence[int]) -> list[list[int]]:
    members: dict[int, list[int]] = {}
    for at, group in enumerate(groups):
        members.setdefault(group, []).append(at)
    return list(members.values())
