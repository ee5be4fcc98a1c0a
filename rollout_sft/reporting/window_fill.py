"""Estimates how full windows will be, and finds the batch size that fills them and overfills at most 1 in 10,000.

Only the sum of a window has to fit, so a batch size may fill windows to 90 %; how close they come to full depends on
how much the lengths vary. The lengths seen are a sample, and later windows have lengths that the sample lacks. So:

1. The share of segments longer than each length is raised to its upper confidence limit: the largest share with which
   one sample in 20 shows as few of them (Clopper-Pearson). Mean, spread and the share of long segments rise together.
   Up to 3/n of all segments may be longer than the longest of n; these count as `packing_length`.
2. 20,000 windows of such lengths are drawn. The result is the largest batch size with at most one infeasible window.

The estimate holds with 95 % confidence, for every distribution, if all segments are drawn independently from the same
distribution; while a model learns, its lengths may change. It holds for one rank and for whole windows: an epoch's
last, shorter window overfills more often, and may therefore have up to GA packs. After few segments the estimate is
cautious and recommends a low fill, because the next segment may be as long as a pack.

Each estimate costs about a second: 20,000 draws for each of about six batch sizes. A run makes four estimates.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from packsched import PackingError, plan_window
from rollout_sft.config.arguments import RolloutSFTConfig

logger = logging.getLogger(__name__)

TARGET_FILL = 0.9
CONFIDENCE = 0.95
"""Share of samples for which the estimate holds."""
WINDOWS = 20_000
"""How many windows are drawn for each batch size."""
WINDOWS_AT_A_TIME = 1_000
"""How many windows are drawn at once; the first thousand already show a batch size that is far too large."""
INFEASIBLE = 1
"""How many of the drawn windows may be infeasible."""
ATOMS = 128
"""The most different lengths from which windows are drawn; each stands for all lengths between it and the next."""
PLANS = 100
"""How many windows are planned for each of two measures of doubt, the most doubtful first."""
ENOUGH = (512, 4096, 32768)
"""Numbers of segments after which the estimate is made again, with 95 % confidence."""

Lengths = NDArray[np.int64]
Shares = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Advice:
    """
    Holds a recommended batch size and its fill.

    Args:
        batch_size (`int`):
            `per_device_train_batch_size`.
        fill (`float`):
            The mean fill over all packs with this batch size, from the mean of the lengths seen.
    """

    batch_size: int
    fill: float


def advise(
    encoded_lens: Sequence[int],
    packing_length: int,
    micro_steps: int,
    *,
    promise: bool = True,
    target: float = TARGET_FILL,
    seed: int = 0,
) -> Advice:
    """
    Finds the batch size that brings the mean fill closest to `target` from below.

    Args:
        encoded_lens (`Sequence[int]`):
            Lengths of the segments seen so far; at least one, and none above `packing_length`.
        packing_length (`int`):
            Tokens of a pack.
        micro_steps (`int`):
            Packs of a window (GA).
        promise (`bool`, *optional*, defaults to `True`):
            Whether to allow for lengths that the sample does not show. If not, the sample is taken as the distribution.
        target (`float`, *optional*, defaults to 0.9):
            Mean fill to aim for.
        seed (`int`, *optional*, defaults to 0):
            Seed of the drawn windows.

    Returns:
        [`Advice`]: the batch size (at least 1) whose mean fill is nearest to the target, or a smaller one if needed, so
        that fewer than 1 in 10,000 whole windows are infeasible.
    """
    mean = sum(encoded_lens) / len(encoded_lens)
    lens, shares = population(encoded_lens, packing_length, CONFIDENCE if promise else None)
    high = max(1, int(target * packing_length / mean + 0.5))
    low = 1  # one segment for each pack always fits; `high` + 1 does not fit, or exceeds the target
    while low < high:
        middle = (low + high + 1) // 2
        if overfills(lens, shares, packing_length, micro_steps, middle * micro_steps, seed):
            high = middle - 1
        else:
            low = middle
    return Advice(batch_size=low, fill=low * mean / packing_length)


def population(encoded_lens: Sequence[int], packing_length: int, confidence: float | None) -> tuple[Lengths, Shares]:
    """
    Returns a distribution of lengths from which the sample may have been drawn.

    Args:
        encoded_lens (`Sequence[int]`):
            The sample.
        packing_length (`int`):
            The longest length there can be.
        confidence (`float`, *optional*):
            Confidence of the upper limit of each share. `None` takes the shares of the sample.

    Returns:
        `tuple[Lengths, Shares]`: at most `ATOMS` + 1 lengths, the longest first, and their shares.
    """
    longest_first = np.sort(np.asarray(encoded_lens, dtype=np.int64))[::-1]
    n = len(longest_first)
    # Each long segment counts alone, the others in groups: `k` segments are longer than the k-th.
    k = np.union1d(np.arange(min(n, ATOMS // 4)), np.linspace(0, n - 1, ATOMS * 3 // 4).astype(np.int64))
    longer = k / n if confidence is None else betaincinv(k + 1.0, n - k, confidence)
    lens = np.concatenate([[packing_length], longest_first[k]])
    shares = np.diff(np.concatenate([longer, [1.0]]), prepend=0.0)
    return lens, shares / shares.sum()


def overfills(lens: Lengths, shares: Shares, packing_length: int, micro_steps: int, segments: int, seed: int) -> bool:
    """
    Returns whether more than `INFEASIBLE` of `WINDOWS` windows do not fit.

    Args:
        lens (`Lengths`):
            Lengths of the population, the longest first.
        shares (`Shares`):
            The share of each length.
        packing_length (`int`):
            Tokens of a pack.
        micro_steps (`int`):
            Packs of a window.
        segments (`int`):
            Segments of a window.
        seed (`int`):
            Seed of the drawn windows.

    Returns:
        `bool`: decided by two proofs that a window does not fit and one that it fits. Where no proof decides, the most
        doubtful windows are planned.
    """
    rng, infeasible = np.random.default_rng(seed), 0
    in_doubt = []
    for _ in range(WINDOWS // WINDOWS_AT_A_TIME):
        counts = rng.multinomial(segments, shares, WINDOWS_AT_A_TIME)
        tokens = np.cumsum(counts * lens, axis=1)  # tokens of the segments that are at least as long
        long = counts[:, 2 * lens > packing_length].sum(axis=1)
        refused = (tokens[:, -1] > micro_steps * packing_length) | (long > micro_steps)
        infeasible += int(refused.sum())
        if infeasible > INFEASIBLE:
            return True
        # First fit, longest first, finds no place for a segment only if longer segments fill all packs too much for it.
        tight = (tokens - lens > micro_steps * (packing_length - lens)) & (np.cumsum(counts, axis=1) > micro_steps)
        in_doubt.append(counts[((counts > 0) & tight).any(axis=1) & ~refused])
    doubtful = np.concatenate(in_doubt)
    tokens, thirds = doubtful @ lens, doubtful @ (lens * (3 * lens > packing_length))
    for doubt in (tokens, thirds):
        for window in doubtful[np.argsort(-doubt, kind="stable")[:PLANS]]:
            infeasible += not _fits(np.repeat(lens, window), packing_length, micro_steps)
            if infeasible > INFEASIBLE:
                return True
    return False


def _fits(encoded_lens: NDArray[Any], packing_length: int, micro_steps: int) -> bool:
    try:
        plan_window(encoded_lens.tolist(), packing_length, micro_steps)
    except PackingError:
        return False
    return True


class FillEstimate:
    """
    Logs a few times in a run, on the first process, how full the windows are.

    The estimate after the first window is a guess. From 512 segments on it holds with 95 % confidence; it is repeated
    whenever there are eight times as many segments.

    Args:
        config (`RolloutSFTConfig`):
            Gives the pack's length, GA and the batch size. Nothing is logged outside scope `window`.
    """

    def __init__(self, config: RolloutSFTConfig):
        self._packing_length = config.packing_length
        self._micro_steps = config.gradient_accumulation_steps
        self._batch_size = config.per_device_train_batch_size
        self._seen: list[int] = []
        windows = config.packing and config.post_rollout_pack_scope == "window"
        self._due = [1, *ENOUGH] if windows and config.process_index == 0 else []

    def add(self, encoded_lens: Sequence[int]) -> None:
        """Adds one window's lengths; logs an estimate when one is due."""
        if not self._due:
            return
        self._seen += encoded_lens
        if len(self._seen) >= self._due[0]:
            self._due = [segments for segments in self._due if segments > len(self._seen)]
            logger.info("%s", self.message())

    def message(self) -> str:
        """Returns the estimate in words."""
        seen, cap = len(self._seen), self._packing_length
        mean = sum(self._seen) / seen
        promise = seen >= ENOUGH[0]
        advice = advise(self._seen, cap, self._micro_steps, promise=promise)
        now = (
            f"fill of the packs, from {seen} segments (mean {mean:.0f} tokens, longest {max(self._seen)}): "
            f"{self._batch_size * mean / cap:.2f} on average with per_device_train_batch_size {self._batch_size}. "
        )
        would = f"{advice.batch_size} would bring it to {advice.fill:.2f}"
        if not promise:
            return now + (
                f"First guess: {would}, if all segments are like these. The estimate is reliable from {ENOUGH[0]} "
                "segments on."
            )
        return now + (
            f"{would} with less than 1 whole window in 10,000 infeasible. The estimate holds with 95 % confidence, and "
            f"allows for {3 / seen:.2%} of the segments being as long as a pack."
        )
