"""Plans one accumulation window: puts every segment into exactly one of `micro_steps` packs.

`plan_window` checks its arguments, sorts the lengths and passes them to the objective:

- `planner/dense.py` asks whether they fit into the fewest packs there could be, then into one more;
- `planner/levelling.py` asks whether they fit into shorter and shorter packs;
- `planner/cost_levelling.py` places them and then lets packs exchange segments until they cost the same.

All ask `planner/stages.py`, whose table lists the algorithms from the cheapest to the most expensive. Work is counted,
never timed, so the same lengths give the same plan on every machine.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import gcd
from numbers import Real
from typing import Literal, SupportsIndex, get_args

from packsched.arguments import checked_count, checked_lengths
from packsched.costs import DEFAULT_COST, checked_costs, costs_by_length
from packsched.errors import InfeasibleWindowError, PackingError, UndecidedWindowError
from packsched.planner.bounds import lower_bound
from packsched.planner.cost_levelling import level_costs
from packsched.planner.dense import fewest_packs
from packsched.planner.levelling import level_packs
from packsched.planner.stages import Packs, SortedWindow

Objective = Literal["dense", "balanced", "cost"]
_OBJECTIVES = get_args(Objective)
# More work than this would not end within a year; it only has to stay a finite number.
_MOST_EFFORT = 10**9


@dataclass(frozen=True, repr=False)
class WindowPlan:
    """Says which segments share which pack.

    Attributes:
        packs: One tuple of segment indices (ascending) per micro-step; the non-empty ones come first, ordered
            by their oldest segment, the empty ones last.
        pack_lens: Tokens in each pack, same order.
        non_empty: How many packs hold a segment.
        lower_bound: No plan of this window has fewer non-empty packs than this (proven).
        optimal: True only when the objective is proven to be the best possible: the fewest non-empty packs
            for `dense`, the shortest possible longest pack for `balanced`, the cheapest possible costliest pack for
            `cost`. False means "not proven".
    """

    packs: tuple[tuple[int, ...], ...]
    pack_lens: tuple[int, ...]
    non_empty: int
    lower_bound: int
    optimal: bool

    def __repr__(self) -> str:
        return (
            f"WindowPlan({sum(map(len, self.packs))} segments, {sum(self.pack_lens)} tokens, "
            f"{self.non_empty} of {len(self.packs)} packs, longest {max(self.pack_lens, default=0)}, "
            f"lower_bound={self.lower_bound}, optimal={self.optimal})"
        )


def plan_window(
    encoded_lens: Iterable[SupportsIndex],
    packing_length: SupportsIndex,
    micro_steps: SupportsIndex | None,
    *,
    objective: Objective = "dense",
    cost: Callable[[int], int] | Sequence[SupportsIndex] | None = None,
    effort: float = 1.0,
) -> WindowPlan:
    """Puts every segment of a window into exactly one of `micro_steps` packs.

    Args:
        encoded_lens: Segment lengths in tokens, in insertion order (oldest first).
        packing_length: Hard cap of a pack, in tokens.
        micro_steps: Packs to return (gradient accumulation steps); packs may stay empty. None returns as few packs as
            possible, for objective `dense` only.
        objective: `dense` uses as few non-empty packs as possible, `balanced` makes the longest pack as short
            as possible, `cost` makes the costliest pack as cheap as possible.
        cost: For objective `cost`: the cost of a segment by its length, as in `plan_ranks`, or a cost for each segment;
            that of a decoder of two billion parameters when not given.
        effort: Multiplies the counted work of the searches behind the first attempts; 10 looks ten times as hard. An
            answer that less effort finds takes no longer with more.

    Returns:
        The plan. Same arguments, same plan: on every machine, in every process.

    Raises:
        OversizedSegmentError: A single segment is longer than `packing_length`.
        InfeasibleWindowError: It is proven that the segments do not fit into `micro_steps` packs.
        UndecidedWindowError: Neither a plan nor a proof was found within the counted work.
        PackingError: A count is below 1, a length is not a positive integer, or the objective is unknown.

    Cost: `O(n log n)` for nearly every window, under a millisecond up to 512 segments. Windows of up to 64 packs that
    are never decided cost 0.05 to 0.6 s at effort 1 and packing lengths up to 16384, and 4096 segments in hundreds of
    nearly full packs up to 0.7 s (1 s at 131072; still longer packs cost more). Windows of more than 4096 segments, or
    with a packing length whose bitsets are too long to keep, are not searched: only best fit, first fit and the bounds
    run.

    >>> plan_window([1, 1, 4, 6, 6], 10, 2).packs
    ((0, 1, 4), (2, 3))
    """
    cap = checked_count("packing_length", packing_length)
    steps = None if micro_steps is None else checked_count("micro_steps", micro_steps)
    if objective not in _OBJECTIVES:
        raise PackingError(f"objective is {objective!r}; it must be one of {', '.join(_OBJECTIVES)}.")
    if steps is None and objective != "dense":
        raise PackingError(f"micro_steps is None, but objective {objective!r} levels a given number of packs.")
    if cost is not None and objective != "cost":
        raise PackingError(f"cost is given, but objective is {objective!r}; only objective 'cost' looks at costs.")
    lens = checked_lengths(encoded_lens, cap)
    costs = None
    if objective == "cost":
        costs = window_costs(DEFAULT_COST if cost is None else cost, lens)
    return plan_checked(lens, cap, steps, objective, checked_effort(effort), costs)


def window_costs(cost: Callable[[int], int] | Sequence[SupportsIndex], lens: Sequence[int]) -> list[int]:
    """Returns the cost of each segment, from a function of its length or as they are given; checked."""
    if callable(cost):
        return list(map(costs_by_length(cost, lens).__getitem__, lens))
    return checked_costs(cost, len(lens))


def checked_effort(effort: float) -> float:
    """Returns the effort as a float, or raises `PackingError` if it is not a number above 0."""
    # numpy's numbers are Real as well; a bool is a flag in the wrong place.
    if isinstance(effort, bool) or not isinstance(effort, Real) or not 0 < effort < float("inf"):
        raise PackingError(f"effort is {effort!r}; it must be a number above 0.")
    return float(min(effort, _MOST_EFFORT))


def plan_checked(
    lens: Sequence[int],
    cap: int,
    steps: int | None,
    objective: Objective,
    effort: float,
    costs: Sequence[int] | None = None,
) -> WindowPlan:
    """Plans like `plan_window`, from checked arguments; `plan_ranks` plans a thousand windows at once."""
    order = sorted(range(len(lens)), key=lens.__getitem__, reverse=True)
    # Packs of lengths that are multiples of 64 cannot use the last few tokens of a cap that is not a multiple. Counting
    # in the common divisor turns that waste into better bounds and changes no answer.
    unit = gcd(*lens) or 1
    lengths = [lens[index] for index in order]
    window = SortedWindow(lengths if unit == 1 else [length // unit for length in lengths], cap // unit)
    if objective == "dense":
        packs, proof, optimal = fewest_packs(window, steps, effort)
    elif objective == "balanced":
        assert steps is not None
        packs, proof, optimal = level_packs(window, steps, effort)
    else:
        assert steps is not None
        assert costs is not None
        packs, proof, optimal = level_costs(window, [costs[index] for index in order], steps, effort)
    if packs is None:
        assert steps is not None
        numbers = {
            "segments": len(lens),
            "tokens": sum(lens),
            "packing_length": cap,
            "micro_steps": steps,
            "bound": proof.packs,
        }
        if proof.packs <= steps:
            raise UndecidedWindowError(**numbers, searched=window.searchable)
        raise InfeasibleWindowError(**numbers, proof=proof.reason + _in_units(unit, cap))
    of_segments = [sorted([order[position] for position in pack]) for pack in packs]
    return _as_plan(of_segments, lens, len(packs) if steps is None else steps, proof.packs, optimal)


def plan_of_packs(lens: Sequence[int], packs: Packs, cap: int, steps: int, objective: Objective) -> WindowPlan:
    """Returns packs that were found elsewhere, and are known to fit, as a plan of `steps` packs."""
    bound = lower_bound(sorted(lens, reverse=True), cap, known=sum(map(bool, packs)))[0]
    return _as_plan([sorted(pack) for pack in packs], lens, steps, bound, objective == "dense" and len(packs) == bound)


def _as_plan(packs: Packs, lens: Sequence[int], micro_steps: int, bound: int, optimal: bool) -> WindowPlan:
    by_oldest = sorted([tuple(pack) for pack in packs if pack])
    padded = tuple(by_oldest) + ((),) * (micro_steps - len(by_oldest))
    pack_lens = tuple([sum([lens[index] for index in pack]) for pack in padded])
    return WindowPlan(padded, pack_lens, len(by_oldest), bound, optimal)


def _in_units(unit: int, cap: int) -> str:
    usable = cap // unit * unit
    return "" if usable == cap else f"; all lengths are multiples of {unit}, so a pack holds at most {usable} tokens"
