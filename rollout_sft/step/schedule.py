"""Decides which segments share a forward: one schedule per scope, and one for training without packing.

A schedule turns the segments of a window, given micro-batch by micro-batch, into `micro_steps` packs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from packsched import CarryBuffer, FillStats, InfeasibleWindowError, Pack, UndecidedWindowError, WindowBuffer
from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.inputs.segment import Segment, pack_of
from rollout_sft.reporting.metrics import Counters
from rollout_sft.step.packing_errors import in_yaml_terms

logger = logging.getLogger(__name__)


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
    """

    packs: list[Pack[Segment]]
    fill: FillStats
    counters: Counters
    left_over: int = 0

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


class MicroSchedule:
    """
    Schedules scope `micro`: pops one pack from a carry buffer after each micro-batch; the rest waits.

    Args:
        config (`RolloutSFTConfig`):
            Gives the packing length, the buffer's cap, the policy and the warning threshold.
    """

    def __init__(self, config: RolloutSFTConfig):
        self._config = config
        self.clear()

    def clear(self) -> None:
        """Forgets the waiting segments."""
        with in_yaml_terms():
            self.buffer: CarryBuffer[Segment] = CarryBuffer(
                self._config.packing_length,
                packing_buffer=self._config.packing_buffer,
                policy=self._config.pack_policy,
                min_fill_ratio=0.0,  # otherwise the buffer warns at every underfilled pack
            )
        self._underfilled = 0

    @property
    def waiting(self) -> list[Segment]:
        """Returns the segments in the carry buffer."""
        return list(self.buffer.segments)

    def schedule(self, micro_batches: Sequence[Sequence[Segment]], micro_steps: int) -> ScheduledWindow:
        """Returns one pack per micro-step: the oldest waiting segment and those that the policy adds to it."""
        packs: list[Pack[Segment]] = []
        popped = underfilled = 0
        for step in range(micro_steps):
            for segment in micro_batches[step] if step < len(micro_batches) else ():
                with in_yaml_terms(segment.sample_id):
                    self.buffer.add(segment, segment.encoded_len)
            if not len(self.buffer):
                packs.append(pack_of(()))
                continue
            pack = self.buffer.pop_pack()
            packs.append(pack)
            popped += 1
            if pack.fill < self._config.packing_min_fill_ratio:
                underfilled += 1
                self._warn_underfilled(pack)
        fill = FillStats.from_packs(
            [pack.layout.tokens for pack in packs],
            self.buffer.packing_length,
            segments=sum(len(pack.segments) for pack in packs),
        )
        counters = {"packing/underfilled": (float(underfilled), float(popped))}
        return ScheduledWindow(packs=packs, fill=fill, counters=counters, left_over=len(self.buffer))

    def _warn_underfilled(self, pack: Pack[Segment]) -> None:
        """Warns at the 1st, 10th, 100th, ... underfilled pack; the log line counts all of them."""
        self._underfilled += 1
        if str(self._underfilled).strip("0") == "1":
            logger.warning(
                "post-rollout packing underfilled: %d of %d tokens (fill %.3f < packing_min_fill_ratio %.3f) in %d "
                "segments, %d left in the buffer; number %d of this run, packing/underfilled has their share. Make "
                "more segments per micro-step or pack over the window (post_rollout_pack_scope: window).",
                pack.layout.tokens,
                self.buffer.packing_length,
                pack.fill,
                self._config.packing_min_fill_ratio,
                len(pack.segments),
                len(self.buffer),
                self._underfilled,
            )


class WindowSchedule:
    """
    Schedules scope `window`: makes one plan for all micro-steps and carries nothing into the next window.

    Args:
        config (`RolloutSFTConfig`):
            Gives the packing length and the objective.
    """

    def __init__(self, config: RolloutSFTConfig):
        self._packing_length = config.packing_length
        self._objective = config.pack_objective
        self._extra_steps = config.on_infeasible == "extra_steps"
        self._whole = config.gradient_accumulation_steps
        self.waiting: list[Segment] = []

    def schedule(self, micro_batches: Sequence[Sequence[Segment]], micro_steps: int) -> ScheduledWindow:
        """Returns the packs of the whole window, the empty ones last."""
        window: WindowBuffer[Segment] = WindowBuffer(self._packing_length, micro_steps, objective=self._objective)
        for segments in micro_batches:
            for segment in segments:
                with in_yaml_terms(segment.sample_id):
                    window.add(segment, segment.encoded_len)
        with in_yaml_terms():
            packs = self._take(window)
        assert window.plan is not None
        fill = FillStats.from_packs(
            [pack.layout.tokens for pack in packs],
            self._packing_length,
            segments=sum(len(pack.segments) for pack in packs),
            lower_bound=window.plan.lower_bound,
        )
        return ScheduledWindow(packs=packs, fill=fill, counters={})

    def _take(self, window: WindowBuffer[Segment]) -> list[Pack[Segment]]:
        """
        Returns one pack per micro-step; if the segments do not fit, tries more packs where that is allowed.

        An epoch's last window may have fewer micro-steps than the others, and with fewer micro-steps it is more likely
        that the segments do not fit. It may always have as many packs as a whole window.
        """
        while True:
            try:
                return window.take_packs()
            except (InfeasibleWindowError, UndecidedWindowError):
                most = math.inf if self._extra_steps else self._whole
                if window.micro_steps >= most:
                    raise
                needed = -(-sum(window.encoded_lens) // self._packing_length)
                window.micro_steps = int(min(max(window.micro_steps + 1, needed), most))


class PaddedSchedule:
    """Schedules `training.packing: false`: trains each micro-batch alone, padded to its longest segment."""

    def __init__(self) -> None:
        self.waiting: list[Segment] = []

    def schedule(self, micro_batches: Sequence[Sequence[Segment]], micro_steps: int) -> ScheduledWindow:
        """Returns the micro-batches unchanged, one pack each."""
        packs = [pack_of(segments) for segments in micro_batches]
        packs += [pack_of(())] * (micro_steps - len(packs))
        tokens = sum(pack.layout.tokens for pack in packs)
        rectangles = sum(pack.layout.num_segments * pack.layout.max_seqlen for pack in packs)
        counters = {"padding/fill": (float(tokens), float(rectangles))}
        return ScheduledWindow(packs=packs, fill=FillStats(), counters=counters)


def make_schedule(config: RolloutSFTConfig) -> MicroSchedule | WindowSchedule | PaddedSchedule:
    """Makes the schedule that `training.packing` and `rollout_matching.post_rollout_pack_scope` name."""
    if not config.packing:
        return PaddedSchedule()
    return WindowSchedule(config) if config.post_rollout_pack_scope == "window" else MicroSchedule(config)
