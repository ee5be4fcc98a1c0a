"""Runs the stages behind every plan, from one ordered table.

Every stage gets the same question: do these segments fit into that many packs? It answers with packs, with a proof
that they do not fit, or with None; after None the next stage is asked. Cheap stages come first. Each file implements
one algorithm. `STAGES`, at the end of this file, says when a stage runs and how much work it may do. Removing a line
from the table removes the stage from both objectives.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import NamedTuple

from packsched.planner.bin_completion import OutOfNodesError, bin_completion
from packsched.planner.bin_slack import FAIR_SHARE, OTHER_ALLOWANCES, minimum_bin_slack
from packsched.planner.bounds import lower_bound
from packsched.planner.column_generation import column_generation
from packsched.planner.greedy import best_fit_decreasing, first_fit_decreasing, longest_processing_time
from packsched.planner.pairwise_resplit import pairwise_resplit

# With more segments, filling pack by pack, which is quadratic, costs more than it gains.
MOST_SEGMENTS = 4096
# Packs times segments: filling a larger window can take a second, so it is done once, after leveling, and counted.
_MOST_FILLED_FAST = 1 << 16
# Shifts of a larger filling, and re-splits, at any effort: enough for ordinary windows, and at most 0.05 s and 2 ms.
_LEAST_SHIFTS, _LEAST_SPLITS = 1 << 16, 100
# Nodes that settle most windows of so many segments which bin completion settles; longer ones seldom end so soon.
_SHORT_SEARCH, _MOST_SOON_SEARCHED = 300, 64
# Limits the memory of one subset sum, in bits: 2^24 tokens a pack with 4096 segments.
_MOST_BITS = 1 << 30

Packs = list[list[int]]
"""Positions in the lengths of a `SortedWindow`, one list for each pack."""


class Proof(NamedTuple):
    """Proves that no plan has fewer than `packs` packs; `reason` names the bound or the search that shows it."""

    packs: int
    reason: str


@dataclass
class SortedWindow:
    """Holds the lengths of a window, longest first, and the cap of its packs.

    Computes results that do not depend on the number of packs once.
    """

    lengths: Sequence[int]
    packing_length: int

    @cached_property
    def tokens(self) -> int:
        """Returns the sum of the lengths."""
        return sum(self.lengths)

    @cached_property
    def best_fit(self) -> Packs:
        """Returns the packs of best-fit decreasing."""
        return best_fit_decreasing(self.lengths, self.packing_length)

    @cached_property
    def first_fit(self) -> Packs:
        """Returns the packs of first-fit decreasing."""
        return first_fit_decreasing(self.lengths, self.packing_length)

    @cached_property
    def lower_bound(self) -> Proof:
        """Returns the best of the bounds."""
        return Proof(*lower_bound(self.lengths, self.packing_length))

    @cached_property
    def searchable(self) -> bool:
        """Returns whether the window is searched; windows with too many segments or too long packs are not."""
        n = len(self.lengths)
        return n <= MOST_SEGMENTS and self.packing_length * (isqrt(n) + 1) <= _MOST_BITS


class Stage(NamedTuple):
    """Describes one stage: one line of the table.

    Attributes:
        name: Its name in documents and benchmarks.
        applies: Says whether the stage runs for a window and a number of packs.
        work: Subset sums, shifts, nodes or numbers at effort 1, counted and not timed; 0 for a stage that soon ends.
        levels: Whether the stage runs again for each pack length that the balanced objective tries.
        answer: Takes a window, a number of packs and the work allowed; returns packs, a proof or None.
    """

    name: str
    applies: Callable[[SortedWindow, int], bool]
    work: int
    levels: bool
    answer: Callable[[SortedWindow, int, int], Packs | Proof | None]


def fit(window: SortedWindow, packs: int, effort: float, *, levelling: bool = False) -> Packs | Proof | None:
    """Returns at most `packs` packs, a proof that there are none, or None if the counted work found neither.

    Args:
        window: The lengths and the cap.
        packs: How many packs there may be.
        effort: Multiplies the counted work of every stage.
        levelling: Runs only the stages that the balanced objective repeats for every pack length.

    Cost: the first stages answer for nearly every window of up to 64 packs, in about a millisecond; when none answers,
    all of them take 0.05 to 0.4 s at effort 1. Larger windows: see `plan_window`. With an effort above 1 the stages
    with counted work run again with twice the work, four times, ... up to it.
    """
    # Twice the work in each round: no stage that could go on for hours keeps another one waiting.
    share, stages = min(effort, 1.0), STAGES
    while True:
        for stage in stages:
            if (stage.levels or not levelling) and stage.applies(window, packs):
                answer = stage.answer(window, packs, max(1, int(stage.work * share)))
                if answer is not None:
                    return answer
        if share >= effort:
            return None
        share, stages = min(2 * share, effort), tuple(stage for stage in STAGES if stage.work)


def _always(window: SortedWindow, packs: int) -> bool:
    return True


def _too_large_to_search(window: SortedWindow, packs: int) -> bool:
    return not window.searchable


def _has_room(window: SortedWindow, packs: int) -> bool:
    return window.searchable and window.tokens <= packs * window.packing_length


def _is_filled_fast(window: SortedWindow, packs: int) -> bool:
    return _has_room(window, packs) and packs * len(window.lengths) <= _MOST_FILLED_FAST


def _is_soon_searched(window: SortedWindow, packs: int) -> bool:
    return _has_room(window, packs) and (len(window.lengths) <= _MOST_SOON_SEARCHED or _is_nearly_full(window, packs))


def _is_nearly_full(window: SortedWindow, packs: int) -> bool:
    """Returns whether the window has less than one free token a pack."""
    return packs * window.packing_length - window.tokens < packs


def _best_fit(window: SortedWindow, packs: int, work: int) -> Packs | None:
    return window.best_fit if len(window.best_fit) <= packs else None


def _first_fit(window: SortedWindow, packs: int, work: int) -> Packs | None:
    return window.first_fit if len(window.first_fit) <= packs else None


def _bounds(window: SortedWindow, packs: int, work: int) -> Proof | None:
    return window.lower_bound if window.lower_bound.packs > packs else None


def _first_filling(window: SortedWindow, packs: int, work: int) -> Packs | None:
    return minimum_bin_slack(window.lengths, window.packing_length, packs, [FAIR_SHARE])


def _further_fillings(window: SortedWindow, packs: int, work: int) -> Packs | None:
    if _is_filled_fast(window, packs):
        return minimum_bin_slack(window.lengths, window.packing_length, packs, OTHER_ALLOWANCES)
    return minimum_bin_slack(
        window.lengths, window.packing_length, packs, [FAIR_SHARE], shifts=max(work, _LEAST_SHIFTS)
    )


def _level(window: SortedWindow, packs: int, work: int) -> Packs | None:
    """Levels the packs until all are within the cap; where segments are nearly equal, filling packs leaves bad ones."""
    start = longest_processing_time(window.lengths, packs)
    splits = max(work, _LEAST_SPLITS)
    level = pairwise_resplit(window.lengths, start, enough=window.packing_length, splits=splits)
    longest = max(sum(window.lengths[position] for position in pack) for pack in level)
    return level if longest <= window.packing_length else None


def _column_generation(window: SortedWindow, packs: int, work: int) -> Proof | None:
    bound = column_generation(window.lengths, window.packing_length, packs, work)
    return None if bound is None else Proof(bound, "column generation")


def _short_search(window: SortedWindow, packs: int, work: int) -> Packs | Proof | None:
    """Searches a little before column generation, which is dearer; at any effort where hardly a token is free."""
    return _bin_completion(window, packs, max(work, _SHORT_SEARCH) if _is_nearly_full(window, packs) else work)


def _bin_completion(window: SortedWindow, packs: int, work: int) -> Packs | Proof | None:
    try:
        found = bin_completion(window.lengths, window.packing_length, packs, nodes=work)
    except OutOfNodesError:
        return None
    return Proof(packs + 1, "exhaustive search") if found is None else found


STAGES: tuple[Stage, ...] = (
    Stage("best-fit decreasing", _always, 0, False, _best_fit),
    Stage("first-fit decreasing", _too_large_to_search, 0, False, _first_fit),
    Stage("first filling", _is_filled_fast, 0, True, _first_filling),
    Stage("bounds", _always, 0, False, _bounds),
    Stage("level packs", _has_room, 4_000, False, _level),
    Stage("further fillings", _has_room, 300_000, True, _further_fillings),
    Stage("short search", _is_soon_searched, _SHORT_SEARCH, False, _short_search),
    Stage("column generation", _has_room, 100_000_000, False, _column_generation),
    Stage("bin completion", _has_room, 6_000, True, _bin_completion),
)
