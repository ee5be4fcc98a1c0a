"""One plan for one accumulation window: every segment in exactly one of `micro_steps` packs.

`plan_window` is a cascade from cheap to dear. Each stage lives in its own module, returns packs or a proof, and
can be taken out in one edit of `search.fit` (or `bounds.lower_bound`):

- best-fit decreasing (`decreasing.py`) settles almost every window in well under a millisecond;
- first-fit decreasing (`decreasing.py`) competes with it where no search follows;
- bounds (`bounds.py`) say how many packs any plan needs, and so whether to go on;
- minimum bin slack (`filling.py`) fills one pack at a time exactly, for windows that are nearly full;
- exact cover (`cover.py`) solves windows without any slack and few segments a pack;
- bin completion (`completion.py`) searches exhaustively, for a plan or the proof that there is none;
- ruin and recreate (`ruin.py`) is the last resort: seeded restarts.

The balanced objective (`balance.py`) asks the same cascade for shorter and shorter packs. Work is counted, never
timed, so the same lengths give the same plan on every machine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import gcd
from numbers import Real
from typing import SupportsIndex

from packsched.arguments import checked_count, checked_lengths
from packsched.errors import InfeasibleWindowError, PackingError, UndecidedWindowError
from packsched.planner.bin_completion import OutOfNodesError
from packsched.planner.bin_slack import ALLOWANCES, minimum_bin_slack
from packsched.planner.bounds import lower_bound, volume_bound
from packsched.planner.greedy import best_fit_decreasing, first_fit_decreasing
from packsched.planner.levelling import level_packs, longest_pack, longest_pack_bound
from packsched.planner.stages import Packs, fit, searchable

OBJECTIVES = ("dense", "balanced")
# How much of the usual work goes into fewer packs when the window is placed already.
_EXTRA_EFFORT = 0.1
# More work than this would not end within a year; it only has to stay a finite number.
_MOST_EFFORT = 10**9


@dataclass(frozen=True)
class WindowPlan:
    """Which segments share which pack.

    Attributes:
        packs: One tuple of segment indices (ascending) per micro-step; the non-empty ones come first, ordered
            by their oldest segment, the empty ones last.
        pack_lens: Tokens in each pack, same order.
        non_empty: How many packs hold a segment.
        lower_bound: No plan of this window has fewer non-empty packs than this (proven).
        optimal: True only when the objective is proven to be the best possible: the fewest non-empty packs
            for `dense`, the shortest possible longest pack for `balanced`. False means "not proven".
    """

    packs: tuple[tuple[int, ...], ...]
    pack_lens: tuple[int, ...]
    non_empty: int
    lower_bound: int
    optimal: bool


def plan_window(
    encoded_lens: Iterable[SupportsIndex],
    packing_length: SupportsIndex,
    micro_steps: SupportsIndex | None,
    *,
    objective: str = "dense",
    effort: float = 1.0,
) -> WindowPlan:
    """Put every segment of a window into exactly one of `micro_steps` packs.

    Args:
        encoded_lens: Segment lengths in tokens, in insertion order (oldest first).
        packing_length: Hard cap of a pack, in tokens.
        micro_steps: Packs to return (gradient accumulation steps); packs may stay empty. None: as few as it
            takes, objective `dense` only.
        objective: `dense` uses as few non-empty packs as possible, `balanced` makes the longest pack as short
            as possible.
        effort: Multiplies the counted work of the searches behind the first attempts; 10 looks ten times as hard.

    Returns:
        The plan. Same arguments, same plan: on every machine, in every process.

    Raises:
        OversizedSegmentError: a single segment is longer than `packing_length`.
        InfeasibleWindowError: proven that the segments do not fit into `micro_steps` packs.
        UndecidedWindowError: neither a plan nor a proof was found within the counted work.
        PackingError: a count below 1, a length that is not a positive integer, an unknown objective.

    Cost: `O(n log n)` for nearly every window, under a millisecond up to 512 segments. Windows that are never decided
    cost 0.1 to 0.8 s at effort 1 and packing lengths up to 16384, whatever the number of segments (`balanced` with
    over a thousand packs: 3 s). Above 4096 segments, and where a bitset of the packing length is too long to keep, only
    best fit, first fit and the bounds run.

    >>> plan_window([1, 1, 4, 6, 6], 10, 2).packs
    ((0, 1, 4), (2, 3))
    """
    cap = checked_count("packing_length", packing_length)
    steps = None if micro_steps is None else checked_count("micro_steps", micro_steps)
    if objective not in OBJECTIVES:
        raise PackingError(f"objective is {objective!r}; it must be one of {', '.join(OBJECTIVES)}.")
    if steps is None and objective == "balanced":
        raise PackingError("micro_steps is None, but objective 'balanced' levels a given number of packs.")
    return plan_checked(checked_lengths(encoded_lens, cap), cap, steps, objective, checked_effort(effort))


def checked_effort(effort: float) -> float:
    """Returns the effort as a float, or raises `PackingError` if it is not a number above 0."""
    # numpy's numbers are Real as well; a bool is a flag in the wrong place.
    if isinstance(effort, bool) or not isinstance(effort, Real) or not 0 < effort < float("inf"):
        raise PackingError(f"effort is {effort!r}; it must be a number above 0.")
    return float(min(effort, _MOST_EFFORT))


def plan_checked(lens: Sequence[int], cap: int, steps: int | None, objective: str, effort: float) -> WindowPlan:
    """`plan_window` for arguments that have been checked: `plan_ranks` plans a thousand windows at once."""
    order = sorted(range(len(lens)), key=lens.__getitem__, reverse=True)
    window = _Window(lens, [lens[index] for index in order], cap, steps, effort)
    packs, bound, optimal = window.dense() if objective == "dense" else window.balanced()
    return _as_plan(packs, order, lens, len(packs) if steps is None else steps, bound, optimal)


def plan_of_packs(lens: Sequence[int], packs: Packs, cap: int, steps: int, objective: str) -> WindowPlan:
    """Packs that are known to fit, found elsewhere, as a plan of `steps` packs."""
    bound = lower_bound(sorted(lens, reverse=True), cap)[0]
    optimal = objective == "dense" and len(packs) == bound
    return _as_plan(packs, list(range(len(lens))), lens, steps, bound, optimal)


class _Window:
    """One window while it is planned: `lengths` are `lens` longest first, in units of their common divisor.

    No pack of lengths that are multiples of 64 can use the last few tokens of a cap that is none: rounding the cap
    down turns that waste into better bounds and shorter searches, and changes no answer.
    """

    def __init__(
        self, lens: Sequence[int], lengths: list[int], cap: int, micro_steps: int | None, effort: float
    ) -> None:
        self.lens = lens
        self.asked_cap = cap
        self.unit = gcd(*lengths) or 1
        self.lengths = lengths if self.unit == 1 else [length // self.unit for length in lengths]
        self.cap = cap // self.unit
        self.micro_steps = micro_steps
        self.effort = effort

    def dense(self) -> tuple[Packs, int, bool]:
        """As few packs as found, the proven lower bound, and whether they are equal."""
        best = best_fit_decreasing(self.lengths, self.cap)
        searched = searchable(self.lengths, self.cap)
        allowed = len(best) if self.micro_steps is None else self.micro_steps
        bound = volume_bound(self.lengths, self.cap)
        slack = bound * self.cap - sum(self.lengths)
        if slack and bound < len(best) and bound <= allowed and searched:
            # Nearly always the volume bound can be reached, at the first attempt, and needs no better bound.
            filled, left = minimum_bin_slack(self.lengths, self.cap, bound, ALLOWANCES[0])
            best = best if left else filled
        if not searched and bound < len(best):
            best = min(best, first_fit_decreasing(self.lengths, self.cap), key=len)
        if len(best) > bound or bound > allowed:
            bound = self.bound(enough=len(best))
        target = bound
        while target < len(best):
            must = target >= allowed
            try:
                found = fit(self.lengths, self.cap, target, self.effort * (1 if must else _EXTRA_EFFORT))
            except OutOfNodesError:
                if must:
                    raise self.undecided(bound) from None
            else:
                if found is not None:
                    best = found
                    break
                bound = target + 1
                if bound > allowed:
                    raise self.infeasible(bound, "exhaustive search")
            target += 1
        return best, bound, len(best) == bound

    def balanced(self) -> tuple[Packs, int, bool]:
        """As level as found, the fewest packs there could be, and whether nothing can be more level."""
        bound = self.bound()
        assert self.micro_steps is not None
        if not self.lengths:
            return [], 0, True
        shortest = longest_pack_bound(self.lengths, self.cap, self.micro_steps)
        try:
            packs, shortest = level_packs(self.lengths, self.cap, self.micro_steps, shortest, self.effort)
        except OutOfNodesError:
            raise self.undecided(bound) from None
        if packs is None:
            raise self.infeasible(self.micro_steps + 1, "exhaustive search")
        return packs, bound, longest_pack(self.lengths, packs) == shortest

    def bound(self, enough: int | None = None) -> int:
        """The best lower bound; raises when it is above `micro_steps`."""
        bound, name = lower_bound(self.lengths, self.cap, enough)
        if self.micro_steps is not None and bound > self.micro_steps:
            raise self.infeasible(bound, name)
        return bound

    def infeasible(self, bound: int, name: str) -> InfeasibleWindowError:
        assert self.micro_steps is not None
        if self.cap * self.unit < self.asked_cap:
            name += f"; all lengths are multiples of {self.unit}, so a pack holds at most {self.cap * self.unit} tokens"
        return InfeasibleWindowError(
            segments=len(self.lens),
            tokens=sum(self.lens),
            packing_length=self.asked_cap,
            micro_steps=self.micro_steps,
            bound=bound,
            proof=name,
        )

    def undecided(self, bound: int) -> UndecidedWindowError:
        assert self.micro_steps is not None
        return UndecidedWindowError(
            segments=len(self.lens),
            tokens=sum(self.lens),
            packing_length=self.asked_cap,
            micro_steps=self.micro_steps,
            bound=bound,
            searched=searchable(self.lengths, self.cap),
        )


def _as_plan(
    packs: Packs, order: list[int], lens: Sequence[int], micro_steps: int, bound: int, optimal: bool
) -> WindowPlan:
    by_oldest = sorted(tuple(sorted(order[position] for position in pack)) for pack in packs if pack)
    padded = tuple(by_oldest) + ((),) * (micro_steps - len(by_oldest))
    pack_lens = tuple(sum(lens[index] for index in pack) for pack in padded)
    return WindowPlan(padded, pack_lens, len(by_oldest), bound, optimal)
