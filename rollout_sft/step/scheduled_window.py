"""Says what a schedule makes of a window, and when it may take more packs than the window has micro-steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from packsched import FillStats, Pack
from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.inputs.segment import Segment
from rollout_sft.reporting.metrics import Counters


@dataclass(frozen=True, kw_only=True)
class ScheduledWindow:
    """
    Holds what one rank trains in one optimizer step.

    Args:
        packs (`list[Pack[Segment]]`):
            One per micro-step; an idle micro-step has an empty pack. There may be more packs than micro-steps under
            `on_infeasible: extra_steps`, and in an epoch's last, shorter window.
        fill (`FillStats`):
            How full the packs are; empty without packing.
        counters (`Counters`):
            Further pairs for the log line.
        left_over (`int`):
            Segments that wait in the carry buffer.
        given, received (`list[Segment]`):
            Scope `global`: this rank's segments that other ranks train, and those of others that it trains.
    """

    packs: list[Pack[Segment]]
    fill: FillStats
    counters: Counters
    left_over: int = 0
    given: list[Segment] = field(default_factory=list)
    received: list[Segment] = field(default_factory=list)

    @property
    def weight_sum(self) -> float:
        """Returns the sum of this rank's loss weights in this window: its share of the loss's denominator."""
        return sum(segment.weight_sum for pack in self.packs for segment in pack.segments)


class Schedule(Protocol):
    """Places the segments of a window into packs."""

    @property
    def waiting(self) -> list[Segment]:
        """Returns the segments carried to the next window, oldest first."""
        ...

    def schedule(self, micro_batches: Sequence[Sequence[Segment]], micro_steps: int) -> ScheduledWindow:
        """Returns `micro_steps` packs, or more ([`ScheduledWindow`]). At the end `micro_batches` may be fewer."""
        ...


def more_micro_steps(config: RolloutSFTConfig, micro_steps: int, tokens: int) -> int | None:
    """
    Says how many packs to try next for a window that does not fit.

    An epoch's last window may have fewer micro-steps than the others, and with fewer micro-steps it is more likely
    that the segments do not fit. It may always have as many packs as a whole window.

    Args:
        config (`RolloutSFTConfig`):
            Gives GA, and whether further packs run inside the last micro-step (`on_infeasible: extra_steps`).
        micro_steps (`int`):
            The number of packs into which the window does not fit.
        tokens (`int`):
            The window's tokens (scope `global`: their mean over the ranks, rounded up).

    Returns:
        `int`, *optional*: a larger number; None where the window has to be refused.
    """
    most = math.inf if config.on_infeasible == "extra_steps" else config.gradient_accumulation_steps
    if micro_steps >= most:
        return None
    needed = -(-tokens // config.packing_length)
    return int(min(max(micro_steps + 1, needed), most))
