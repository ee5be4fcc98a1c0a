"""Leaves out segments that no pack can hold, where `rollout_matching.on_oversized: skip` asks for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.inputs.segment import Segment
from rollout_sft.reporting.metrics import Counters

logger = logging.getLogger(__name__)

_NAMED = 8


class OversizedFilter:
    """
    Leaves out the segments of a window that are longer than `packing_length`, counts them and names their samples.

    Args:
        config (`RolloutSFTConfig`):
            `on_oversized: raise` leaves everything in, and the schedule raises; so does `packing: false`.
    """

    def __init__(self, config: RolloutSFTConfig):
        self._cap = config.packing_length if config.packing and config.on_oversized == "skip" else None
        self._skipped = 0

    def apply(self, micro_batches: Sequence[Sequence[Segment]]) -> tuple[list[list[Segment]], Counters]:
        """
        Returns the segments that fit, micro-batch by micro-batch, and the counter `packing/oversized`.

        The counter is the share of samples that were left out. Each window that leaves one out warns with their names.
        """
        cap = self._cap
        if cap is None:
            return [list(row) for row in micro_batches], {}
        kept = [[segment for segment in row if segment.encoded_len <= cap] for row in micro_batches]
        out = [segment for row in micro_batches for segment in row if segment.encoded_len > cap]
        if out:
            self._skipped += len(out)
            named = ", ".join(f"{segment.sample_id!r} ({segment.encoded_len:,} tokens)" for segment in out[:_NAMED])
            logger.warning(
                "left out %d segments that are longer than packing_length %d: %s%s; %d so far on this rank "
                "(rollout_matching.on_oversized: skip).",
                len(out),
                cap,
                named,
                f" and {len(out) - _NAMED} more" if len(out) > _NAMED else "",
                self._skipped,
            )
        return kept, {"packing/oversized": (float(len(out)), float(sum(map(len, micro_batches))))}
