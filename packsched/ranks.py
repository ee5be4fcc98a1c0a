"""Plans the global scope: moves few segments between ranks, so that every window fits and all ranks cost the same.

Under data parallelism the step waits for the slowest rank's whole window. So:

1. Each rank above a common limit keeps the costliest subset of its segments that stays within the limit. Its other
   segments go, costliest first, to the ranks with room below the limit. The limit starts one per cent above the mean
   and rises only if the moved segments do not fit.
2. Each rank's window is planned. The packs of a rank that cannot be placed exchange single segments with those of
   other ranks until all have a place. Fitting comes before cost: if it has to be, at any cost.
3. A rank that cannot be placed even so gives segments away, or is planned together with the roomiest other ranks, as
   few of them as possible.
4. Packs of the costliest ranks exchange single segments until these cost at most 1.5 per cent more than the mean.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import SupportsIndex

from packsched.arguments import checked_count
from packsched.balancing.easy_windows import plan_easy_windows
from packsched.balancing.exchange import Held, level_ranks, own_first
from packsched.balancing.given import (
    Cost,
    GivenWindow,
    checked_costs_of_ranks,
    checked_groups,
    checked_lens_of_ranks,
)
from packsched.balancing.pooling import fit_every_rank
from packsched.balancing.swaps import PackedRanks
from packsched.balancing.trades import Trading
from packsched.costs import DEFAULT_COST
from packsched.errors import InfeasibleWindowError, PackingError, UndecidedWindowError
from packsched.planner.bounds import lower_bound
from packsched.planner.cost_levelling import exchange
from packsched.planner.greedy import best_fit_decreasing
from packsched.planner.stages import Packs
from packsched.window import Objective, WindowPlan, checked_effort, plan_checked, plan_of_packs, plan_window

# How much of the usual work goes into each attempt at exchanging segments between ranks.
_TRIAL_EFFORT = 0.1
# The most that a rank may cost after an exchange that finds a place, in thousandths of the mean; at last any cost.
_LIMITS = (1015, 1030, None)
# Ranks that cost more than this, in thousandths of the mean, exchange single segments.
_LEVEL = 1015
# numpy adds costs in 64 bits. Larger costs are scaled down until their sum has at most this many bits.
_COST_BITS = 60


@dataclass(frozen=True, repr=False)
class RanksPlan:
    """Says which segment moves from which rank to which, and holds one window plan for each rank.

    Attributes:
        moves: (segment, from_rank, to_rank) for every segment that changes its rank, ordered by from_rank and then
            segment; `segment` is its index in the lengths of `from_rank`.
        segments: For each rank the (from_rank, segment) of each segment that it holds after the moves: its own first,
            in order, then the received ones in the order of `moves`. The plans' indices point into this tuple.
        plans: One `WindowPlan` for each rank.
        costs: Each rank's cost after the moves; `costs_before` is the cost without them.
        moved_tokens: Tokens of all moved segments together.
    """

    moves: tuple[tuple[int, int, int], ...]
    segments: tuple[tuple[tuple[int, int], ...], ...]
    plans: tuple[WindowPlan, ...]
    costs: tuple[int, ...]
    costs_before: tuple[int, ...]
    moved_tokens: int
    _given: GivenWindow = field(repr=False, compare=False)

    def __repr__(self) -> str:
        return (
            f"RanksPlan({len(self.plans)} ranks, {sum(map(len, self.segments))} segments, {len(self.moves)} moves of "
            f"{self.moved_tokens} tokens, straggler {self.straggler_before:.3f} -> {self.straggler:.3f})"
        )

    @property
    def straggler(self) -> float:
        """Returns highest over mean cost of the ranks after the moves; 1.0 means level, or an empty window."""
        return _over_mean(max(self.costs), self.costs)

    @property
    def straggler_before(self) -> float:
        """Returns highest over mean cost of the ranks without the moves."""
        return _over_mean(max(self.costs_before), self.costs)

    @cached_property
    def least_cost(self) -> int:
        """Returns a lower bound of the costliest rank's cost, however segments are distributed (proven).

        It is computed when it is first asked for, as is `least_moved_tokens`: neither decides anything.
        """
        return self._given.least_cost()

    @cached_property
    def least_moved_tokens(self) -> int:
        """Returns a lower bound of the tokens that have to leave their ranks.

        It holds for every plan in which no rank costs more than the costliest does here, none holds more tokens than
        its packs, and none has a window that is proven not to fit them.
        """
        givers = sorted({from_rank for _, from_rank, _ in self.moves})
        return self._given.least_given(givers, max(self.costs), len(self.plans[0].packs))

    @property
    def straggler_bound(self) -> float:
        """Returns a proven lower bound of the straggler of every plan; above 1 where single segments cost too much."""
        return _over_mean(self.least_cost, self.costs)


def plan_ranks(
    encoded_lens_by_rank: Iterable[Iterable[SupportsIndex]],
    packing_length: SupportsIndex,
    micro_steps: SupportsIndex | None,
    *,
    cost: Cost = DEFAULT_COST,
    groups: Sequence[Sequence[SupportsIndex]] | None = None,
    multiple_of: SupportsIndex = 1,
    objective: Objective = "dense",
    effort: float = 1.0,
) -> RanksPlan:
    """Levels the windows of all ranks by moving few tokens, then plans each rank's window.

    Args:
        encoded_lens_by_rank: For each rank the lengths of its segments in tokens, in insertion order.
        packing_length: Hard cap of a pack, in tokens.
        micro_steps: Packs of each rank. None takes the fewest that are found, the same number on every rank.
        cost: Cost of a segment by its length, a positive integer that never falls when the length grows; see
            `SegmentCost.of_model`. Or, for each rank, the costs of its segments, where they do not follow the length.
        groups: For each rank an integer for each of its segments. Segments of a rank with the same integer stay on one
            rank together, in one pack or several; the rollouts of one prompt, say.
        multiple_of: With `micro_steps=None`, the number of micro-steps is rounded up to a multiple of this.
        objective: `dense`, `balanced` or `cost`, for each rank's plan.
        effort: As in `plan_window`.

    Returns:
        The same plan on every rank that calls it with the same arguments.

    Raises:
        OversizedSegmentError: A segment is longer than `packing_length`.
        InfeasibleWindowError: It is proven that the segments do not fit into the packs of all ranks.
        UndecidedWindowError: Neither a plan nor a proof was found within the counted work.
        PackingError: There is no rank, or a count, length, cost, group or objective is bad.

    Cost: `O(N log N)` for N segments in all, plus one `plan_window` a rank: about 0.1 s for 1024 ranks of 32.

    >>> plan = plan_ranks([[6, 6, 5, 3], [2, 2]], 8, 3)
    >>> plan.moves, [p.non_empty for p in plan.plans]
    (((2, 0, 1), (3, 0, 1)), [2, 2])
    >>> len(plan_ranks([[6, 6, 5, 3], [2, 2]], 8, None, multiple_of=2).plans[0].packs)
    2
    """
    cap = checked_count("packing_length", packing_length)
    steps = None if micro_steps is None else checked_count("micro_steps", micro_steps)
    multiple = checked_count("multiple_of", multiple_of)
    if steps is not None and multiple != 1:
        raise PackingError(f"multiple_of is {multiple}, but micro_steps is {steps}; it rounds up what None finds.")
    lens = checked_lens_of_ranks(encoded_lens_by_rank, cap)
    given = GivenWindow(lens, checked_costs_of_ranks(cost, lens), checked_groups(groups, lens), cap)
    window = _Ranks(given, objective, checked_effort(effort))
    if steps is not None:
        return window.plan(steps)
    everything = sorted(chain.from_iterable(lens), reverse=True)
    steps = -(-max(1, lower_bound(everything, cap)[0]) // (len(lens) * multiple)) * multiple
    while True:
        try:
            return window.plan(steps)
        except (InfeasibleWindowError, UndecidedWindowError):
            steps += multiple


class _Ranks:
    """Holds the checked arguments of `plan_ranks`."""

    def __init__(self, given: GivenWindow, objective: Objective, effort: float) -> None:
        plan_window([], given.packing_length, 1, objective=objective)  # refuse a bad objective up front
        self.given, self.objective, self.effort = given, objective, effort
        self.lens, self.costs, self.groups, self.cap = given.lens, given.costs, given.groups, given.packing_length
        self.costs_before = tuple(map(sum, self.costs))

    def plan(self, steps: int) -> RanksPlan:
        """Plans a given number of micro-steps."""
        held = self._level(steps)
        plans = self._plan_ranks(held, steps)
        if None in plans:
            self._refuse_what_is_proven(steps)
            self._find_places(held, plans, steps)
        if None in plans and self.groups is None:
            self._trade_places(held, plans, steps)
        if None in plans:
            self._fit(held, plans, steps)
        costs = self._costs_after(_moves(held))
        if max(costs) * len(costs) * 1000 > _LEVEL * sum(costs):
            packed = self._open(held, plans, steps)
            packed.level(_LEVEL)
            self._adopt(packed, held, plans, steps)
        found = [self._searched(here, plan, steps) for here, plan in zip(held, plans, strict=True)]
        return self._as_plan(held, found)

    def _level(self, steps: int) -> Held:
        if self.groups is None:
            return level_ranks(self.lens, self.costs, self.cap * steps)
        units, lens, costs = self.given.units, self.given.of_units(self.lens), self.given.of_units(self.costs)
        held = level_ranks(lens, costs, self.cap * steps)
        # Groups are too coarse for the packs' exchanges of single segments, so whole groups change places now.
        flat = [(rank, unit) for rank, of in enumerate(units) for unit in range(len(of))]
        where = {one: position for position, one in enumerate(flat)}
        level = exchange(
            list(chain.from_iterable(lens)),
            list(chain.from_iterable(costs)),
            [[where[one] for one in here] for here in held],
            self.cap * steps,
            most=4 * len(flat),
            enough=sum(map(sum, costs)) * _LEVEL // (1000 * len(costs)),
        )
        held = [[flat[position] for position in here] for here in level]
        return [
            own_first(rank, [(from_rank, at) for from_rank, unit in here for at in units[from_rank][unit]])
            for rank, here in enumerate(held)
        ]

    def _lens_of(self, here: Sequence[tuple[int, int]]) -> list[int]:
        return [self.lens[rank][at] for rank, at in here]

    def _plan_ranks(self, held: Held, steps: int) -> list[WindowPlan | None]:
        easy: list[WindowPlan | None] = [None] * len(held)
        if self.objective == "dense":
            easy = plan_easy_windows(list(map(self._lens_of, held)), self.cap, steps)
        return [
            plan or self._plan_rank(here, steps, self.effort * _TRIAL_EFFORT)
            for here, plan in zip(held, easy, strict=True)
        ]

    def _plan_rank(self, here: Sequence[tuple[int, int]], steps: int, effort: float) -> WindowPlan | None:
        costs = [self.costs[rank][at] for rank, at in here] if self.objective == "cost" else None
        try:
            return plan_checked(self._lens_of(here), self.cap, steps, self.objective, effort, costs)
        except (InfeasibleWindowError, UndecidedWindowError):
            return None

    def _searched(self, here: Sequence[tuple[int, int]], plan: WindowPlan | None, steps: int) -> WindowPlan:
        """Returns the plan, or a better one where it is not proven to be the best and all of the work finds one."""
        assert plan is not None
        return plan if plan.optimal else self._plan_rank(here, steps, self.effort) or plan

    def _refuse_what_is_proven(self, steps: int) -> None:
        """Raises where the bounds prove that not even all ranks together have room."""
        everything = sorted(chain.from_iterable(self.lens), reverse=True)
        if lower_bound(everything, self.cap)[0] > steps * len(self.lens):
            plan_checked(everything, self.cap, steps * len(self.lens), "dense", _TRIAL_EFFORT)

    def _open(self, held: Held, plans: Sequence[WindowPlan | None], steps: int) -> PackedRanks:
        if self.groups is None:
            movable = [[True] * len(rank_lens) for rank_lens in self.lens]
        else:
            movable = [[rank_groups.count(group) == 1 for group in rank_groups] for rank_groups in self.groups]
        packs = [None if plan is None else plan.packs for plan in plans]
        return PackedRanks(self.lens, self.costs, movable, held, packs, self.cap, steps)

    def _adopt(self, packed: PackedRanks, held: Held, plans: list[WindowPlan | None], steps: int) -> None:
        """Takes over what exchanges have changed; plans the ranks anew where packs are to be level."""
        for rank, here, packs in packed.held_and_packed(sorted(packed.changed)):
            held[rank] = here
            found = None if self.objective == "dense" else self._plan_rank(here, steps, self.effort)
            plans[rank] = found or plan_of_packs(self._lens_of(here), packs, self.cap, steps, self.objective)

    def _find_places(self, held: Held, plans: list[WindowPlan | None], steps: int) -> None:
        """Places ranks without a plan by exchanges between packs; the plan stays None where there are none."""
        packed = self._open(held, plans, steps)
        for rank in [rank for rank, plan in enumerate(plans) if plan is None]:
            here = packed.held(rank)
            lens = self._lens_of(here)
            order = sorted(range(len(lens)), key=lens.__getitem__, reverse=True)
            packs = best_fit_decreasing([lens[at] for at in order], self.cap)
            fullest = sorted(packs, key=lambda pack: -sum(lens[order[at]] for at in pack))[:steps]
            for most in _LIMITS:
                packed.open(rank, here, [[order[at] for at in pack] for pack in fullest])
                if packed.place(rank, most):
                    packed.changed.add(rank)
                    break
        self._adopt(packed, held, plans, steps)

    def _trade_places(self, held: Held, plans: list[WindowPlan | None], steps: int) -> None:
        """Places ranks without a plan by trades of whole segments; the plan stays None where none helps."""
        shift = max(0, sum(self.costs_before).bit_length() - _COST_BITS)
        costs = [[cost >> shift for cost in rank] for rank in self.costs]
        most = (sum(self.costs_before) * _LIMITS[1] // (1000 * len(self.lens))) >> shift

        def plan(here: Sequence[tuple[int, int]]) -> WindowPlan | None:
            return self._plan_rank(here, steps, self.effort * _TRIAL_EFFORT)

        tokens = self.cap * steps
        Trading(lens=self.lens, costs=costs, tokens=tokens, most_cost=most, plan=plan).place(held, plans)

    def _fit(self, held: Held, plans: list[WindowPlan | None], steps: int) -> None:
        def plan(lengths: Sequence[int], trial: bool) -> WindowPlan | None:
            # Costs decide nothing here; `_searched` levels them when all ranks have a place.
            objective: Objective = "dense" if self.objective == "cost" else self.objective
            try:
                return plan_checked(lengths, self.cap, steps, objective, self.effort * (_TRIAL_EFFORT if trial else 1))
            except (InfeasibleWindowError, UndecidedWindowError):
                return None

        def pool(lengths: Sequence[int], ranks: int) -> Sequence[Sequence[int]] | None:
            share = 1 if ranks == len(self.lens) else _TRIAL_EFFORT
            try:
                packs = plan_checked(lengths, self.cap, steps * ranks, "dense", self.effort * share).packs
            except (InfeasibleWindowError, UndecidedWindowError):
                if ranks == len(self.lens):
                    raise
                return None
            if self.groups is not None:
                raise UndecidedWindowError(
                    segments=len(lengths),
                    tokens=sum(lengths),
                    packing_length=self.cap,
                    micro_steps=steps * ranks,
                    bound=lower_bound(sorted(lengths, reverse=True), self.cap)[0],
                    searched=True,
                )
            return packs

        def adopt(lengths: Sequence[int], packs: Packs) -> WindowPlan:
            return plan_of_packs(lengths, packs, self.cap, steps, self.objective)

        fit_every_rank(held, self.lens, self.costs, steps, plans, plan, pool, adopt, self.groups)

    def _as_plan(self, held: Held, plans: Sequence[WindowPlan]) -> RanksPlan:
        moves = _moves(held)
        return RanksPlan(
            moves=tuple(moves),
            segments=tuple(tuple(here) for here in held),
            plans=tuple(plans),
            costs=self._costs_after(moves),
            costs_before=self.costs_before,
            moved_tokens=sum(self.lens[from_rank][segment] for segment, from_rank, _ in moves),
            _given=self.given,
        )

    def _costs_after(self, moves: Iterable[tuple[int, int, int]]) -> tuple[int, ...]:
        costs = list(self.costs_before)
        for segment, from_rank, to_rank in moves:
            costs[from_rank] -= self.costs[from_rank][segment]
            costs[to_rank] += self.costs[from_rank][segment]
        return tuple(costs)


def _moves(held: Held) -> list[tuple[int, int, int]]:
    """Returns (segment, from_rank, to_rank) of what changes its rank, ordered by from_rank and then segment."""
    received: list[tuple[int, int, int]] = []
    for rank, here in enumerate(held):
        for from_rank, segment in reversed(here):
            if from_rank == rank:  # the rest is its own
                break
            received.append((from_rank, segment, rank))
    return [(segment, from_rank, rank) for from_rank, segment, rank in sorted(received)]


def _over_mean(highest: int, costs: Sequence[int]) -> float:
    return highest * len(costs) / sum(costs) if any(costs) else 1.0
