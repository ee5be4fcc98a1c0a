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
MOST_RANKS = 64
"""Scope `global`: windows of more ranks take longer to estimate than a second, and their fill is nearly the same."""


class FillEstimate:
    """
    Logs a few times in a run, on the first process, how full the windows are.

    The estimate after the first window is a guess. From 512 segments on it holds with 95 % confidence; it is repeated
    whenever there are eight times as many segments. In scope `global` the windows of all ranks are one, so fewer
    overfill and a larger batch fits; of more than 64 ranks it counts 64.

    Args:
        config (`RolloutSFTConfig`):
            Gives the pack's length, GA, the batch size and the number of ranks. Nothing is logged in scope `micro`.
    """

    def __init__(self, config: RolloutSFTConfig):
        self._packing_length = config.packing_length
        self._micro_steps = config.gradient_accumulation_steps
        self._batch_size = config.per_device_train_batch_size
        self._seen: list[int] = []
        self._ranks = min(config.world_size, MOST_RANKS) if config.post_rollout_pack_scope == "global" else 1
        windows = config.packing and config.post_rollout_pack_scope != "micro"
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
        advice = advise(self._seen, cap, self._micro_steps * self._ranks, promise=promise)
        now = (
            f"fill of the packs, from {seen} segments (mean {mean:.0f} tokens, longest {max(self._seen)}): "
            f"{self._batch_size * mean / cap:.2f} on average with per_device_train_batch_size {self._batch_size}. "
        )
        would = f"{advice.batch_size} would bring it to {advice.fill:.2f}"
        if advice.batch_size == self._batch_size:
            would = "No other would fill them more"
        if self._ranks > 1:
            would += f" in windows of {self._ranks} ranks together"
        if not promise:
            return now + (
                f"First guess: {would}, if all segments are like these. The estimate is reliable from {ENOUGH[0]} "
                "segments on."
            )
        return now + (
            f"{would} with less than 1 whole window in 10,000 infeasible. The estimate holds with 95 % confidence, and "
            f"allows for {3 / seen:.2%} of the segments being as long as a pack."
        )
