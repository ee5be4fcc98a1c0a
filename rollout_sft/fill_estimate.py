"""How full windows will be, and the batch size that would fill them without overfilling one in 10,000.

Only a window's sum has to fit, so batches may be sized until windows are 90 % full; how close to full depends on how
much the lengths vary. The estimate draws windows from the lengths seen so far, splits each evenly into its packs, and
asks how far the longest pack reaches into its tail: its mean, its spread and the skew of the lengths give the quantile
(Cornish-Fisher). The packing itself, long segments included, is thus simulated; only the tail is extrapolated.

Cost: 64 plans of a window for each of a few batch sizes, once or twice in a run: seconds where windows are large.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from packsched import PackingError, plan_window
from rollout_sft.config import RolloutSFTConfig

logger = logging.getLogger(__name__)

TARGET_FILL = 0.9
QUANTILE = 3.719
"""Standard deviations beyond which a normal variable lies once in 10,000 times."""
DRAWS = 64
ENOUGH = 128
"""Segments after which the estimate is made a second and last time."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """
    A batch size and what it would do.

    Args:
        batch_size (`int`):
            `per_device_train_batch_size`.
        fill (`float`):
            The mean fill over all packs with it.
    """

    batch_size: int
    fill: float


def advise(
    encoded_lens: Sequence[int], packing_length: int, micro_steps: int, *, target: float = TARGET_FILL, seed: int = 0
) -> Advice:
    """
    The batch size that brings the mean fill closest to `target` from below.

    Args:
        encoded_lens (`Sequence[int]`):
            Lengths of segments seen so far, at least one, none above `packing_length`.
        packing_length (`int`):
            Tokens of a pack.
        micro_steps (`int`):
            Packs of a window (GA).
        target (`float`, *optional*, defaults to 0.9):
            Mean fill to aim for.
        seed (`int`, *optional*, defaults to 0):
            Of the drawn windows.

    Returns:
        [`Advice`]: the batch size (at least 1) whose mean fill is nearest to the target, or a smaller one, such that
        fewer than 1 in 10,000 whole windows should be infeasible.
    """
    lens = np.asarray(encoded_lens)
    mean = float(lens.mean())
    high = max(1, int(target * packing_length / mean + 0.5))
    low = 1  # one segment for each pack always fits; `high` + 1 does not, or is above the target
    while low < high:
        middle = (low + high + 1) // 2
        if longest_pack(lens, packing_length, micro_steps, middle * micro_steps, seed) <= packing_length:
            low = middle
        else:
            high = middle - 1
    return Advice(batch_size=low, fill=low * mean / packing_length)


def longest_pack(lens: np.ndarray, packing_length: int, micro_steps: int, segments: int, seed: int) -> float:
    """Tokens that the longest pack of an evenly split window exceeds once in 10,000 windows."""
    rng = np.random.default_rng(seed)
    longest = []
    for window in rng.choice(lens, (DRAWS, segments)):
        try:
            # Twice the cap: whether a window fits is what is asked, so it must not be refused.
            plan = plan_window(window.tolist(), 2 * packing_length, micro_steps, objective="balanced")
        except PackingError:
            return float("inf")
        longest.append(max(plan.pack_lens))
    spread = lens.std()
    skew = float((((lens - lens.mean()) / spread) ** 3).mean()) / segments**0.5 if spread else 0.0
    deviations = QUANTILE + max(0.0, skew) * (QUANTILE**2 - 1) / 6
    return float(np.mean(longest) + deviations * np.std(longest))


class FillEstimate:
    """
    Says twice in a run, on the first process, how full the windows are: at the first window and once enough is seen.

    Args:
        config (`RolloutSFTConfig`):
            Gives the pack's length, GA and the batch size. Outside scope `window` nothing is said.
    """

    def __init__(self, config: RolloutSFTConfig):
        self._packing_length = config.packing_length
        self._micro_steps = config.gradient_accumulation_steps
        self._batch_size = config.per_device_train_batch_size
        self._seen: list[int] = []
        windows = config.packing and config.post_rollout_pack_scope == "window"
        self._left = 2 if windows and config.process_index == 0 else 0

    def add(self, encoded_lens: Sequence[int]) -> None:
        """Takes one window's lengths; logs where it is time."""
        if not self._left:
            return
        self._seen += encoded_lens
        if self._seen and (self._left == 2 or len(self._seen) >= ENOUGH):
            self._left = 0 if len(self._seen) >= ENOUGH else 1
            logger.info("%s", self.message())

    def message(self) -> str:
        """The estimate as a sentence."""
        mean = sum(self._seen) / len(self._seen)
        advice = advise(self._seen, self._packing_length, self._micro_steps)
        now = (
            f"fill of the packs, from {len(self._seen)} segments (mean {mean:.0f} tokens, longest {max(self._seen)}): "
            f"{self._batch_size * mean / self._packing_length:.2f} on average with per_device_train_batch_size "
            f"{self._batch_size}. "
        )
        return now + (
            f"{advice.batch_size} would bring it to {advice.fill:.2f} with less than 1 window in 10,000 infeasible."
        )
