"""Logs how full the windows of a run are, and which batch size would fill them, by `packsched.advise`.

A run makes four estimates; each costs about a second.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from packsched import advise
from rollout_sft.config.arguments import RolloutSFTConfig

logger = logging.getLogger(__name__)

ENOUGH = (512, 4096, 32768)
"""Numbers of segments after which the estimate is made again, with 95 % confidence."""


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
