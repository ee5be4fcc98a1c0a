"""Holds what all ranks have before anything moves, and the bounds that no plan of it can beat."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from packsched.balancing.bounds import least_given
from packsched.planner.levelling import load_bound

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


def _members(groups: Sequence[int]) -> list[list[int]]:
    members: dict[int, list[int]] = {}
    for at, group in enumerate(groups):
        members.setdefault(group, []).append(at)
    return list(members.values())
