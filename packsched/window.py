"""One plan for one accumulation window: every segment in exactly one of `micro_steps` packs.

`plan_window` is a cascade from cheap to dear. Each stage lives in its own module, returns packs or a proof, and
can be taken out of `_fewest_packs` or `_level_packs` in one edit:

- best-fit decreasing settles almost every window in well under a millisecond;
- the bounds say how many packs any plan needs, and so whether to go on;
- minimum bin slack fills one pack at a time exactly, for windows that are nearly full;
- bin completion searches exhaustively within a budget of nodes, for a plan or the proof that there is none.

Work is counted, never timed, so the same lengths give the same plan on every machine.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import SupportsIndex

from packsched.bounds import lower_bound
from packsched.completion import OutOfNodesError, bin_completion
from packsched.decreasing import best_fit_decreasing
from packsched.errors import InfeasibleWindowError, PackingError, UndecidedWindowError
from packsched.filling import minimum_bin_slack
from packsched.lengths import checked_count, checked_lengths

OBJECTIVES = ("dense", "balanced")
_NODES = 20_000
_MITIGATIONS = (
    "raise gradient_accumulation_steps, lower per_device_train_batch_size, raise global_max_length, "
    "or lower max_new_tokens"
)

_Packs = list[list[int]]


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
    micro_steps: SupportsIndex,
    *,
    objective: str = "dense",
) -> WindowPlan:
    """Put every segment of a window into exactly one of `micro_steps` packs.

    Args:
        encoded_lens: Segment lengths in tokens, in insertion order (oldest first).
        packing_length: Hard cap of a pack, in tokens.
        micro_steps: Packs to return (gradient accumulation steps); packs may stay empty.
        objective: `dense` uses as few non-empty packs as possible, `balanced` makes the longest pack as short
            as possible.

    Raises:
        OversizedSegmentError: a single segment is longer than `packing_length`.
        InfeasibleWindowError: proven that the segments do not fit into `micro_steps` packs.
        UndecidedWindowError: neither a plan nor a proof was found within the counted work.
        PackingError: a count below 1, a length that is not a positive integer, an unknown objective.

    >>> plan_window([1, 1, 4, 6, 6], 10, 2).packs
    ((0, 1, 3), (2, 4))
    """
    packing_length = checked_count("packing_length", packing_length)
    micro_steps = checked_count("micro_steps", micro_steps)
    if objective not in OBJECTIVES:
        raise PackingError(
            f"objective is {objective!r}; it must be one of {', '.join(map(repr, OBJECTIVES))}."
        )
    lens = checked_lengths(encoded_lens, packing_length)
    order = sorted(range(len(lens)), key=lambda index: -lens[index])
    lengths = [lens[index] for index in order]

    bound, bound_name = lower_bound(lengths, packing_length)
    if bound > micro_steps:
        raise _infeasible(lens, packing_length, micro_steps, bound, bound_name)
    if objective == "dense":
        packs, bound = _fewest_packs(lengths, packing_length, bound, micro_steps)
        if bound > micro_steps:
            raise _infeasible(lens, packing_length, micro_steps, bound, "exhaustive search (bin completion)")
        optimal = packs is not None and len(packs) == bound
    else:
        packs, optimal = _level_packs(lengths, packing_length, micro_steps)
    if packs is None:
        raise _undecided(lens, packing_length, micro_steps, bound)
    return _as_plan(packs, order, lens, micro_steps, bound, optimal)


def _fewest_packs(lengths: list[int], cap: int, bound: int, allowed: int) -> tuple[_Packs | None, int]:
    """The densest packs found, None when more than `allowed`; and the proven lower bound."""
    best = best_fit_decreasing(lengths, cap)
    if len(best) > bound:
        best = min(best, minimum_bin_slack(lengths, cap), key=len)
    while len(best) > bound:
        try:
            found = bin_completion(lengths, cap, bound, _NODES)
        except OutOfNodesError:
            break
        if found is None:
            bound += 1
            if bound > allowed:
                return None, bound
        else:
            best = found
    if bound < allowed < len(best):
        try:
            found = bin_completion(lengths, cap, allowed, _NODES)
        except OutOfNodesError:
            found = None
        best = found or best
    return (best if len(best) <= allowed else None), bound


def _level_packs(lengths: list[int], cap: int, micro_steps: int) -> tuple[_Packs | None, bool]:
    """Packs with the longest as short as found, and whether no plan can be shorter."""
    low = max(-(-sum(lengths) // micro_steps), lengths[0] if lengths else 0)
    best, _ = _fewest_packs(lengths, cap, 1, micro_steps)
    high = cap
    floor = low
    while best and low < high:
        limit = (low + high) // 2
        packs = min(best_fit_decreasing(lengths, limit), minimum_bin_slack(lengths, limit), key=len)
        if len(packs) <= micro_steps:
            best, high = packs, max(sum(lengths[at] for at in pack) for pack in packs)
        else:
            low = limit + 1
    return best, not lengths or (best is not None and high == floor)


def _as_plan(
    packs: _Packs, order: list[int], lens: list[int], micro_steps: int, bound: int, optimal: bool
) -> WindowPlan:
    by_oldest = sorted(tuple(sorted(order[position] for position in pack)) for pack in packs)
    padded = tuple(by_oldest) + ((),) * (micro_steps - len(by_oldest))
    pack_lens = tuple(sum(lens[index] for index in pack) for pack in padded)
    return WindowPlan(padded, pack_lens, len(by_oldest), bound, optimal)


def _infeasible(lens: list[int], cap: int, micro_steps: int, bound: int, name: str) -> InfeasibleWindowError:
    return InfeasibleWindowError(
        f"{len(lens)} segments of {sum(lens)} tokens in all need at least {bound} packs of packing_length {cap} "
        f"({name}), and the window has {micro_steps} micro-steps, {micro_steps * cap} tokens. "
        f"To fix: {_MITIGATIONS}."
    )


def _undecided(lens: list[int], cap: int, micro_steps: int, bound: int) -> UndecidedWindowError:
    return UndecidedWindowError(
        f"no plan found that puts {len(lens)} segments of {sum(lens)} tokens into {micro_steps} packs of "
        f"packing_length {cap} ({micro_steps * cap} tokens), and no proof that there is none: at least {bound} "
        f"packs are needed. One more pack, or some free tokens, would settle it: {_MITIGATIONS}."
    )
