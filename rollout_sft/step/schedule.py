"""Decides which segments share a forward: one schedule per scope, and one for training without packing.

A schedule turns the segments of a window, given micro-batch by micro-batch, into `micro_steps` packs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from transformers import PretrainedConfig

from packsched import (
    CarryBuffer,
    FillStats,
    InfeasibleWindowError,
    Pack,
    UndecidedWindowError,
    WindowBuffer,
)
from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.inputs.segment import Segment, pack_of
from rollout_sft.step.global_schedule import GlobalSchedule
from rollout_sft.step.pack_times import PackTimes
from rollout_sft.step.packing_errors import in_yaml_terms
from rollout_sft.step.scheduled_window import ScheduledWindow, more_micro_steps
from rollout_sft.step.segment_cost import ModelCost, SizeOf

logger = logging.getLogger(__name__)


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
        cost (`Callable[[Segment], int]`, *optional*):
            What a segment costs, for objective `cost`.
    """

    def __init__(self, config: RolloutSFTConfig, cost: Callable[[Segment], int] | None):
        self._config = config
        self._cost = cost
        self._packing_length = config.packing_length
        self._objective = config.pack_objective
        self.waiting: list[Segment] = []

    def schedule(self, micro_batches: Sequence[Sequence[Segment]], micro_steps: int) -> ScheduledWindow:
        """Returns the packs of the whole window, the empty ones last."""
        window: WindowBuffer[Segment] = WindowBuffer(self._packing_length, micro_steps, objective=self._objective)
        for segments in micro_batches:
            for segment in segments:
                with in_yaml_terms(segment.sample_id):
                    window.add(segment, segment.encoded_len, cost=self._cost(segment) if self._cost else None)
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
        """Returns one pack per micro-step, or more packs where that is allowed; see [`more_micro_steps`]."""
        while True:
            try:
                return window.take_packs()
            except (InfeasibleWindowError, UndecidedWindowError):
                more = more_micro_steps(self._config, window.micro_steps, sum(window.encoded_lens))
                if more is None:
                    raise
                window.micro_steps = more


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


def make_schedule(
    config: RolloutSFTConfig, model: PretrainedConfig, seen_size: SizeOf, times: PackTimes
) -> MicroSchedule | WindowSchedule | GlobalSchedule | PaddedSchedule:
    """
    Makes the schedule that `training.packing` and `rollout_matching.post_rollout_pack_scope` name.

    Args:
        config (`RolloutSFTConfig`):
            All settings. On one rank scope `global` is scope `window`.
        model (`PretrainedConfig`):
            The model's configuration, from which scope `global` and objective `cost` derive what a segment costs.
        seen_size (`Callable[[Image], tuple[int, int]]`):
            Returns the pixels that the model sees of an image.
        times ([`~rollout_sft.step.pack_times.PackTimes`]):
            Measures the packs of scope `global`.
    """
    if not config.packing:
        return PaddedSchedule()
    if config.post_rollout_pack_scope == "micro":
        return MicroSchedule(config)
    if config.post_rollout_pack_scope == "global" and config.world_size > 1:
        return GlobalSchedule(config, ModelCost(config.segment_cost, model, seen_size), times)
    levels = config.pack_objective == "cost"
    return WindowSchedule(config, ModelCost(config.segment_cost, model, seen_size) if levels else None)
