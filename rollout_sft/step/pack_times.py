"""Times packs, to check what a segment is said to cost. What is measured is only reported and decides nothing.

A cost that was fitted to a clock would differ from run to run, so a resumed run would pack other windows than the run
that it continues. The log shows the fit instead, and `rollout_matching.segment_cost` takes it.

Only forwards and backwards in which no rank waits for another are timed: those before the synchronising one, of a model
whose weights are not sharded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass

import torch

from packsched import Pack
from rollout_sft.inputs.segment import Segment


@dataclass(frozen=True)
class PackSums:
    """
    Holds sums over timed packs, from which rates and the fit of `seconds = a * tokens + b * pairs` follow.

    A pack's `pairs` are the squares of its segments' lengths, added up.
    """

    seconds: float = 0.0
    cost: int = 0
    tokens_tokens: float = 0.0
    tokens_pairs: float = 0.0
    pairs_pairs: float = 0.0
    tokens_seconds: float = 0.0
    pairs_seconds: float = 0.0

    def __add__(self, other: PackSums) -> PackSums:
        return PackSums(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @classmethod
    def of_pack(cls, encoded_lens: Sequence[int], cost: int, seconds: float) -> PackSums:
        """Returns the sums of one pack."""
        tokens, pairs = float(sum(encoded_lens)), float(sum(length * length for length in encoded_lens))
        return cls(seconds, cost, tokens * tokens, tokens * pairs, pairs * pairs, tokens * seconds, pairs * seconds)

    def pair_over_token(self) -> float | None:
        """Returns b / a of the least squares, or None where the packs do not tell them apart."""
        determinant = self.tokens_tokens * self.pairs_pairs - self.tokens_pairs**2
        a = self.pairs_pairs * self.tokens_seconds - self.tokens_pairs * self.pairs_seconds
        b = self.tokens_tokens * self.pairs_seconds - self.tokens_pairs * self.tokens_seconds
        if determinant <= 1e-6 * self.tokens_tokens * self.pairs_pairs or a <= 0:
            return None
        return max(0.0, b / a)


class PackTimes:
    """
    Times this rank's packs.

    Args:
        device (`torch.device`):
            Where they are trained. On a GPU events are recorded, and nothing waits for them until they are read.
        active (`bool`):
            False where every forward waits for other ranks.
    """

    def __init__(self, device: torch.device, *, active: bool):
        self._gpu = device.type == "cuda"
        self._active = active and device.type in ("cpu", "cuda")
        self._timed: list[tuple[Pack[Segment], Callable[[], float]]] = []

    @contextmanager
    def timed(self, pack: Pack[Segment], *, synchronises: bool) -> Iterator[None]:
        """Times the block, which trains the pack, unless it synchronises gradients or the pack is empty."""
        if not self._active or synchronises or not pack.segments:
            yield
        elif self._gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._timed.append((pack, lambda: _between(start, end)))
        else:
            began = time.perf_counter()
            yield
            seconds = time.perf_counter() - began
            self._timed.append((pack, lambda: seconds))

    def take(self, cost: Callable[[Segment], int]) -> PackSums:
        """Returns the sums over the packs since the last call; on a GPU, waits for them."""
        sums = PackSums()
        for pack, seconds in self._timed:
            sums += PackSums.of_pack(pack.layout.encoded_lens, sum(map(cost, pack.segments)), seconds())
        self._timed = []
        return sums


def _between(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000
