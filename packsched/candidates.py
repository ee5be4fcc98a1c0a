"""Tries packing lengths and gradient accumulation steps, and picks those that fill the packs with the least memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import SupportsIndex

from packsched.advise import advise
from packsched.arguments import checked_lengths
from packsched.errors import PackingError

MICRO_STEPS = (4, 8, 16, 32)
"""The gradient accumulation steps that are tried unless they are given."""
GRAIN = 1024
"""Packing lengths that are tried are multiples of this."""
LONGEST_TRACE = 8192
"""The most segments that `enough_segments` tries."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Holds the best batch size for a packing length and a number of micro-steps.

    Attributes:
        packing_length: Hard cap of a pack, in tokens.
        micro_steps: Packs of a window (gradient accumulation steps).
        batch_size: Segments of a micro-step.
        fill: Mean fill over all packs.
        reaches: Whether the fill is as near to the target as whole segments allow. If not, a larger batch would
            overfill too many windows.
    """

    packing_length: int
    micro_steps: int
    batch_size: int
    fill: float
    reaches: bool

    @property
    def segments(self) -> int:
        """Returns the segments of a window."""
        return self.batch_size * self.micro_steps


def packing_lengths_for(longest: int) -> list[int]:
    """Returns the packing lengths to try: the least multiple of 1024 that holds the longest segment, 2 and 4 times.

    >>> packing_lengths_for(5000)
    [5120, 10240, 20480]
    """
    shortest = -(-longest // GRAIN) * GRAIN
    return [shortest, 2 * shortest, 4 * shortest]


def candidates(
    encoded_lens: Iterable[SupportsIndex],
    *,
    packing_lengths: Sequence[int] | None = None,
    micro_steps: Sequence[int] = MICRO_STEPS,
    target: float = 0.9,
    infeasible: float = 1e-4,
    longest: int | None = None,
    seed: int = 0,
    advance: Callable[[], object] = lambda: None,
) -> list[Candidate]:
    """Asks `advise` for the batch size of each packing length and each number of micro-steps.

    Args:
        encoded_lens: Lengths in tokens of the segments seen so far; at least one.
        packing_lengths: Packing lengths to try; by default `packing_lengths_for` the longest length.
        micro_steps: Gradient accumulation steps to try.
        target: Mean fill to aim for.
        infeasible: Fewer windows than this share may be infeasible.
        longest: The longest length that a segment can have, if that is known.
        seed: Seed of the drawn windows.
        advance: Called after each candidate, for a progress bar.

    Returns:
        One candidate for each pair, the shortest packs first.

    Raises:
        PackingError: As in `advise`.
    """
    lens = checked_lengths(encoded_lens)
    if not lens:
        raise PackingError("there are no lengths to advise on; give those of at least one segment.")
    half_a_segment = sum(lens) / len(lens) / 2
    found = []
    for packing_length in packing_lengths or packing_lengths_for(longest or max(lens)):
        for steps in micro_steps:
            advice = advise(
                lens, packing_length, steps, target=target, infeasible=infeasible, longest=longest, seed=seed
            )
            reaches = advice.fill * packing_length + half_a_segment >= target * packing_length
            found.append(
                Candidate(
                    packing_length=packing_length,
                    micro_steps=steps,
                    batch_size=advice.batch_size,
                    fill=advice.fill,
                    reaches=reaches,
                )
            )
            advance()
    return found


def best(found: Sequence[Candidate]) -> Candidate:
    """Returns the candidate to recommend.

    Of those that reach the target: the shortest packs, since memory grows with them, then the fewest micro-steps. If
    none does: the fullest packs, then the shortest.
    """
    reaching = [candidate for candidate in found if candidate.reaches]
    if reaching:
        return min(reaching, key=lambda candidate: (candidate.packing_length, candidate.micro_steps))
    return min(found, key=lambda candidate: (-candidate.fill, candidate.packing_length, candidate.micro_steps))


def enough_segments(
    encoded_lens: Sequence[int],
    chosen: Candidate,
    *,
    target: float = 0.9,
    infeasible: float = 1e-4,
    longest: int | None = None,
    seed: int = 0,
) -> int | None:
    """Says from how many segments on a trace like this one is long enough for advice.

    A trace is too short if the lengths that it cannot rule out decide: if the batch size is less than half of the one
    that the trace would give if no other lengths could come.

    Args:
        encoded_lens: Lengths in tokens of the segments seen so far.
        chosen: What `best` recommends for them.
        target, infeasible, longest, seed: What it was found with.

    Returns:
        None if this trace is long enough. Otherwise how many segments like these give half of that batch size:
        this trace repeated 2, 4, 8 ... times, up to `LONGEST_TRACE` segments.

    Cost: a few seconds for a trace that is too short.
    """
    lens = list(encoded_lens)

    def batch_size(repeats: int, *, promise: bool = True) -> int:
        return advise(
            lens * repeats,
            chosen.packing_length,
            chosen.micro_steps,
            target=target,
            infeasible=infeasible,
            promise=promise,
            longest=longest if promise else None,
            seed=seed,
        ).batch_size

    half = batch_size(1, promise=False) / 2
    if chosen.batch_size >= half:
        return None
    repeats = 2
    while batch_size(repeats) < half and 2 * repeats * len(lens) <= LONGEST_TRACE:
        repeats *= 2
    return repeats * len(lens)


def yaml_of(chosen: Candidate) -> str:
    """Returns the part of a configuration of `rollout_sft` that sets the candidate."""
    return (
        f"global_max_length: {chosen.packing_length}   # the packing length\n"
        "training:\n"
        f"  per_device_train_batch_size: {chosen.batch_size}\n"
        f"  gradient_accumulation_steps: {chosen.micro_steps}\n"
        "rollout_matching:\n"
        "  post_rollout_pack_scope: window\n"
        "  idle_micro_steps: skip\n"
    )
