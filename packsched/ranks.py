"""Plans the global scope: moves few segments between ranks, so that every window fits and all ranks cost the same.

Under data parallelism the step waits for the slowest rank's whole window. Each rank above a common limit keeps the
costliest subset of its segments that stays within the limit. Its other segments go, largest first, to the ranks with
room below the limit. The limit starts one per cent above the mean and rises only if the moved segments do not fit.

Fitting comes before cost: a rank whose window cannot be placed gives segments away at any cost. If no rank can take
one, the rank is planned together with the roomiest other ranks, as few of them as possible.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import SupportsIndex

from packsched.arguments import check_ordered, checked_count, checked_lengths
from packsched.balancing.exchange import level_ranks
from packsched.balancing.pooling import fit_every_rank
from packsched.costs import SegmentCost
from packsched.errors import InfeasibleWindowError, PackingError, UndecidedWindowError
from packsched.planner.stages import Packs
from packsched.window import Objective, WindowPlan, checked_effort, plan_checked, plan_of_packs, plan_window

# A decoder of about two billion parameters (width 2048, 28 layers, 151,936 tokens).
DEFAULT_COST = SegmentCost.of_model(width=2048, depth=28, vocabulary=151_936)

# How much of the usual work goes into each attempt at exchanging segments between ranks.
_TRIAL_EFFORT = 0.1


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
        least_moved_tokens: A lower bound of the tokens that must move to bring every rank to the highest cost
            reached here and every window within its token capacity, if segments could be divided.
    """

    moves: tuple[tuple[int, int, int], ...]
    segments: tuple[tuple[tuple[int, int], ...], ...]
    plans: tuple[WindowPlan, ...]
    costs: tuple[int, ...]
    costs_before: tuple[int, ...]
    moved_tokens: int
    least_moved_tokens: int

    def __repr__(self) -> str:
        return (
            f"RanksPlan({len(self.plans)} ranks, {sum(map(len, self.segments))} segments, {len(self.moves)} moves of "
            f"{self.moved_tokens} tokens, straggler {self.straggler_before:.3f} -> {self.straggler:.3f})"
        )

    @property
    def straggler(self) -> float:
        """Returns highest over mean cost of the ranks after the moves; 1.0 means level, or an empty window."""
        return _straggler(self.costs)

    @property
    def straggler_before(self) -> float:
        """Returns highest over mean cost of the ranks without the moves."""
        return _straggler(self.costs_before)


def plan_ranks(
    encoded_lens_by_rank: Iterable[Iterable[SupportsIndex]],
    packing_length: SupportsIndex,
    micro_steps: SupportsIndex,
    *,
    cost: Callable[[int], int] = DEFAULT_COST,
    objective: Objective = "dense",
    effort: float = 1.0,
) -> RanksPlan:
    """Levels the windows of all ranks by moving few tokens, then plans each rank's window.

    Args:
        encoded_lens_by_rank: For each rank the lengths of its segments in tokens, in insertion order.
        packing_length: Hard cap of a pack, in tokens.
        micro_steps: Packs of each rank.
        cost: Cost of a segment by its length, a positive integer that never falls when the length grows; see
            `SegmentCost.of_model`.
        objective: `dense` or `balanced`, for each rank's plan.
        effort: As in `plan_window`.

    Returns:
        The same plan on every rank that calls it with the same arguments.

    Raises:
        OversizedSegmentError: A segment is longer than `packing_length`.
        InfeasibleWindowError: It is proven that the segments do not fit into the packs of all ranks.
        UndecidedWindowError: Neither a plan nor a proof was found within the counted work.
        PackingError: There is no rank, or a count, length, cost or objective is bad.

    Cost: `O(N log N)` for N segments in all, plus one `plan_window` a rank: about 0.1 s for 1024 ranks of 32.

    >>> plan = plan_ranks([[6, 6, 5, 3], [2, 2]], 8, 3)
    >>> plan.moves, [p.non_empty for p in plan.plans]
    (((2, 0, 1), (3, 0, 1)), [2, 2])
    """
    cap = checked_count("packing_length", packing_length)
    steps = checked_count("micro_steps", micro_steps)
    check_ordered("encoded_lens_by_rank is", encoded_lens_by_rank, "sequences of lengths, one for each rank")
    lens = [_rank_lengths(rank, rank_lens, cap) for rank, rank_lens in enumerate(encoded_lens_by_rank)]
    if not lens:
        raise PackingError("there are no ranks; encoded_lens_by_rank holds one sequence of lengths for each rank.")
    table = _checked_costs(cost, lens)
    costs_before = _costs(lens, table)
    work = checked_effort(effort)
    plan_window([], cap, steps, objective=objective)  # refuse a bad objective up front

    def plan(lengths: Sequence[int], trial: bool) -> WindowPlan | None:
        try:
            return plan_checked(lengths, cap, steps, objective, work * (_TRIAL_EFFORT if trial else 1))
        except (InfeasibleWindowError, UndecidedWindowError):
            return None

    def pool(lengths: Sequence[int], ranks: int) -> Sequence[Sequence[int]] | None:
        share = 1 if ranks == len(lens) else _TRIAL_EFFORT
        try:
            return plan_checked(lengths, cap, steps * ranks, "dense", work * share).packs
        except (InfeasibleWindowError, UndecidedWindowError):
            if ranks == len(lens):
                raise
            return None

    def adopt(lengths: Sequence[int], packs: Packs) -> WindowPlan:
        return plan_of_packs(lengths, packs, cap, steps, objective)

    held = level_ranks(lens, table, cap * steps)
    plans = fit_every_rank(held, lens, table, steps, plan, pool, adopt)
    moves = tuple(
        sorted(
            (
                (segment, from_rank, rank)
                for rank, here in enumerate(held)
                for from_rank, segment in here
                if from_rank != rank
            ),
            key=lambda move: (move[1], move[0]),
        )
    )
    costs = _costs([[lens[rank][at] for rank, at in here] for here in held], table)
    return RanksPlan(
        moves,
        tuple(tuple(here) for here in held),
        tuple(plans),
        costs,
        costs_before,
        sum(lens[from_rank][segment] for segment, from_rank, _ in moves),
        _least_moved(lens, table, max(costs), cap * steps),
    )


def _rank_lengths(rank: int, rank_lens: Iterable[SupportsIndex], cap: int) -> list[int]:
    try:
        return checked_lengths(rank_lens, cap)
    except PackingError as error:
        refused = error.with_message(f"rank {rank}: {error}")
        refused.rank = rank
        raise refused from None


def _checked_costs(cost: Callable[[int], int], lens: Sequence[Sequence[int]]) -> dict[int, int]:
    table = {length: cost(length) for length in sorted(set(chain.from_iterable(lens)))}
    for length, value in table.items():
        if type(value) is not int or value < 1:
            raise PackingError(f"cost({length}) is {value!r}; costs are positive integers (scale and round them).")
    for shorter, longer in pairwise(table):
        if table[longer] < table[shorter]:
            raise PackingError(
                f"cost({longer}) is {table[longer]}, less than cost({shorter}), {table[shorter]}; a longer segment "
                "costs at least as much as a shorter one."
            )
    return table


def _costs(lens: Sequence[Sequence[int]], table: dict[int, int]) -> tuple[int, ...]:
    return tuple(sum(map(table.__getitem__, rank)) for rank in lens)


def _straggler(costs: Sequence[int]) -> float:
    return max(costs) * len(costs) / sum(costs) if any(costs) else 1.0


def _least_moved(lens: Sequence[Sequence[int]], table: dict[int, int], limit: int, tokens: int) -> int:
    """Returns the tokens that must leave the ranks: those with most cost a token first, and only as many as needed."""
    least = 0
    for rank in lens:
        excess = sum(map(table.__getitem__, rank)) - limit
        must = max(0, sum(rank) - tokens)
        if excess > 0:
            dearest = sorted(rank, key=lambda length: (-table[length] / length, length))
            gone = list(accumulate((table[length] for length in dearest), initial=0))
            whole = next(k for k in range(len(gone)) if gone[k] >= excess) - 1
            part = -(-(excess - gone[whole]) * dearest[whole] // table[dearest[whole]])
            must = max(must, sum(dearest[:whole]) + part)
        least += must
    return least
