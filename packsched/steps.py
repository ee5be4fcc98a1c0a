"""Cuts the lengths of a run into optimizer steps, ranks and micro-batches, as a trainer would have pulled them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from packsched.arguments import checked_count, checked_lengths
from packsched.errors import PackingError


@dataclass(frozen=True)
class Step:
    """Holds one optimizer step of a trace.

    Attributes:
        micro_batches: For each rank, micro-batch by micro-batch, the lengths of its segments.
        micro_steps: Packs of each rank.
    """

    micro_batches: tuple[tuple[tuple[int, ...], ...], ...]
    micro_steps: int

    @property
    def encoded_lens(self) -> list[list[int]]:
        """Returns for each rank the lengths of its window. O(n)."""
        return [list(chain.from_iterable(of_rank)) for of_rank in self.micro_batches]


def cut_steps(
    encoded_lens: Iterable[int],
    *,
    micro_steps: int,
    batch_size: int | None = None,
    windows: Iterable[int] | None = None,
    ranks: Iterable[int] | None = None,
) -> list[Step]:
    """Cuts a trace into optimizer steps.

    Args:
        encoded_lens: Lengths in tokens, in the order in which the segments were made.
        micro_steps: Packs of a window (gradient accumulation steps).
        batch_size: Segments of a micro-batch. Each rank's segments are cut into windows of `batch_size * micro_steps`;
            the last window may be shorter and then has as many packs as micro-batches. Only without `windows`.
        windows: The window of each segment. Windows keep the order in which they begin; each is cut into
            `micro_steps` micro-batches of nearly the same number of segments.
        ranks: The rank of each segment; by default there is one rank.

    Returns:
        The steps; every segment is in exactly one. A rank without segments in a step has an empty window.

    Raises:
        PackingError: There are no lengths, a number is out of range, or not exactly one of `batch_size` and `windows`
            is given.

    >>> cut_steps([5, 3, 8, 2, 6], micro_steps=2, batch_size=2)
    [Step(micro_batches=(((5, 3), (8, 2)),), micro_steps=2), Step(micro_batches=(((6,),),), micro_steps=1)]
    """
    count = checked_count("micro_steps", micro_steps)
    if (batch_size is None) == (windows is None):
        raise PackingError("give either batch_size or the windows of the segments, not both and not neither.")
    lens = np.array(checked_lengths(encoded_lens), dtype=np.int64)
    if not len(lens):
        raise PackingError("there are no lengths to replay; give those of at least one segment.")
    rank_of = _labels("ranks", ranks, len(lens))
    members = [np.flatnonzero(rank_of == rank) for rank in np.unique(rank_of)]
    if batch_size is not None:
        batch = checked_count("batch_size", batch_size)
        size = batch * count
        numbers = range(-(-max(map(len, members)) // size))
        chosen = [[own[number * size : (number + 1) * size] for own in members] for number in numbers]
        return [_step([np.split(own, range(batch, len(own), batch)) for own in step], lens, None) for step in chosen]
    window_of = _labels("windows", windows, len(lens))
    _, begins = np.unique(window_of, return_index=True)
    in_order = window_of[np.sort(begins)]
    by_rank = [dict(_grouped(own, window_of[own])) for own in members]
    nothing = np.array([], dtype=np.int64)
    return [
        _step([np.array_split(own.get(window, nothing), count) for own in by_rank], lens, count)
        for window in in_order.tolist()
    ]


def _labels(name: str, labels: Iterable[int] | None, segments: int) -> NDArray[np.int64]:
    if labels is None:
        return np.zeros(segments, dtype=np.int64)
    array = np.array(list(labels), dtype=np.int64)
    if len(array) != segments:
        raise PackingError(f"{name} has {len(array)} entries for {segments} segments; give one for each segment.")
    return array


def _grouped(own: NDArray[np.int64], keys: NDArray[np.int64]) -> Iterable[tuple[int, NDArray[np.int64]]]:
    order = np.argsort(keys, kind="stable")
    values, starts = np.unique(keys[order], return_index=True)
    return zip(values.tolist(), np.split(own[order], starts[1:]), strict=True)


def _step(chosen: Sequence[Sequence[NDArray[np.int64]]], lens: NDArray[np.int64], micro_steps: int | None) -> Step:
    batches = tuple(tuple(tuple(lens[batch].tolist()) for batch in own) for own in chosen)
    return Step(batches, max(map(len, batches)) if micro_steps is None else micro_steps)
