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
from packsched.planner.bin_slack import minimum_bin_slack, shuffled_bin_slack
from packsched.planner.bounds import lower_bound
from packsched.planner.greedy import best_fit_decreasing, first_fit_decreasing

# With more segments, filling pack by pack, which is quadratic, costs more than it gains.
MOST_SEGMENTS = 4096
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
        work: Tries or nodes at effort 1, counted and not timed; 0 for a stage that always runs to its end.
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

    Cost: the first stage answers for most windows, in under a millisecond. When no stage answers, all of them take a
    few hundred milliseconds at effort 1 and packing lengths up to 16384, for any number of segments.
    """
    for stage in STAGES:
        if (stage.levels or not levelling) and stage.applies(window, packs):
            answer = stage.answer(window, packs, max(1, int(stage.work * effort)))
            if answer is not None:
                return answer
    return None


def _always(window: SortedWindow, packs: int) -> bool:
    return True


def _too_large_to_search(window: SortedWindow, packs: int) -> bool:
    return not window.searchable


def _has_room(window: SortedWindow, packs: int) -> bool:
    return window.searchable and window.tokens <= packs * window.packing_length


def _similar_and_nearly_full(window: SortedWindow, packs: int) -> bool:
    # Filling with the longest segments first leaves similar short ones that no longer fill a pack exactly.
    return _nearly_full(window, packs) and window.lengths[0] < 2 * window.lengths[-1]


def _mixed_or_roomy(window: SortedWindow, packs: int) -> bool:
    return _has_room(window, packs) and not _similar_and_nearly_full(window, packs)


def _nearly_full(window: SortedWindow, packs: int) -> bool:
    """Returns whether the window has less than one free token a pack."""
    return _has_room(window, packs) and packs * window.packing_length - window.tokens < packs


def _best_fit(window: SortedWindow, packs: int, work: int) -> Packs | None:
    return window.best_fit if len(window.best_fit) <= packs else None


def _first_fit(window: SortedWindow, packs: int, work: int) -> Packs | None:
    return window.first_fit if len(window.first_fit) <= packs else None


def _bounds(window: SortedWindow, packs: int, work: int) -> Proof | None:
    return window.lower_bound if window.lower_bound.packs > packs else None


def _minimum_bin_slack(window: SortedWindow, packs: int, work: int) -> Packs | None:
    return minimum_bin_slack(window.lengths, window.packing_length, packs)


def _shuffled_bin_slack(window: SortedWindow, packs: int, work: int) -> Packs | None:
    return shuffled_bin_slack(window.lengths, window.packing_length, packs, tries=work)


def _bin_completion(window: SortedWindow, packs: int, work: int) -> Packs | Proof | None:
    try:
        found = bin_completion(window.lengths, window.packing_length, packs, nodes=work)
    except OutOfNodesError:
        return None
    return Proof(packs + 1, "exhaustive search") if found is None else found


STAGES: tuple[Stage, ...] = (
    Stage("best-fit decreasing", _always, 0, False, _best_fit),
    Stage("first-fit decreasing", _too_large_to_search, 0, False, _first_fit),
    Stage("minimum bin slack", _mixed_or_roomy, 0, True, _minimum_bin_slack),
    Stage("bounds", _always, 0, False, _bounds),
    Stage("shuffled bin slack", _nearly_full, 8, False, _shuffled_bin_slack),
    Stage("minimum bin slack", _similar_and_nearly_full, 0, True, _minimum_bin_slack),
    Stage("bin completion", _has_room, 6_000, True, _bin_completion),
)
