"""What happens once per optimizer step before the first forward: raw micro-batches become packed batches.

    raw micro-batches -> rollouts (one batched call) -> parse, match, build -> schedule -> collate

Everything here is local to the rank and may fail; the trainer makes the ranks agree on the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.data.samples import MicroBatch, Sample, read_prompt
from rollout_sft.inputs.segment import Segment
from rollout_sft.model.forward import Batch
from rollout_sft.reporting.metrics import Ratios, WindowReport
from rollout_sft.rollouts.base import Rollout, RolloutBackend, RolloutRequest
from rollout_sft.step.reductions import rescale
from rollout_sft.step.schedule import Schedule
from rollout_sft.step.seeds import derive_seed, derive_uniform
from rollout_sft.targets.base import Target, TargetBuilder


@dataclass(frozen=True, kw_only=True)
class BuiltWindow:
    """
    One rank's window, ready to be collated.

    Args:
        due (`list[Segment]`):
            The segments this window has to train: what waited and what was built, without what waits now.
        slots (`int`):
            Micro-steps that the Trainer counts.
        micro_steps (`list[tuple[Segment, ...]]`):
            The segments of each forward: one per slot, and more where the window did not fit them.
        batches (`list[Batch]`):
            One per forward, where the segments are.
        report (`WindowReport`):
            What the other ranks and the log need to know of it.
    """

    due: list[Segment]
    slots: int
    micro_steps: list[tuple[Segment, ...]]
    batches: list[Batch]
    report: WindowReport


class WindowBuilder:
    """
    Builds windows.

    Args:
        config (`RolloutSFTConfig`):
            Seed and reference fraction.
        schedule (`Schedule`):
            Decides which segments share a forward.
        target_builder (`TargetBuilder`):
            Makes segments.
        backend (`RolloutBackend`):
            Generates.
        collate (`Callable[[tuple[Segment, ...]], Batch]`):
            Makes a batch of the segments of one micro-step.
        rank (`int`):
            This process's rank; part of every seed.
    """

    def __init__(
        self,
        config: RolloutSFTConfig,
        *,
        schedule: Schedule,
        target_builder: TargetBuilder,
        backend: RolloutBackend,
        collate: Callable[[tuple[Segment, ...]], Batch],
        rank: int,
    ):
        self._config = config
        self._schedule = schedule
        self._targets = target_builder
        self._backend = backend
        self._collate = collate
        self._rank = rank

    def build(self, raw: Iterator[MicroBatch], micro_steps: int, global_step: int) -> BuiltWindow:
        """
        Pulls at most `micro_steps` micro-batches and packs their segments.

        Args:
            raw (`Iterator[MicroBatch]`):
                The epoch's data; may end early.
            micro_steps (`int`):
                Micro-steps of this window.
            global_step (`int`):
                Optimizer steps done so far; part of every seed.

        Returns:
            [`BuiltWindow`]: with `micro_steps` batches, and more only as [`ScheduledWindow`] says.
        """
        ratios = Ratios()
        micro_batches = [batch for _, batch in zip(range(micro_steps), raw, strict=False)]
        with ratios.timed("time/rollout_s"):
            rollouts = self._roll_out(micro_batches, global_step)
        ratios.add(getattr(self._backend, "counters", {}))  # what a backend has to say about its last call
        with ratios.timed("time/build_s"):
            targets = [
                [self._build(sample, rollout) for sample, rollout in zip(batch.samples, row, strict=True)]
                for batch, row in zip(micro_batches, rollouts, strict=True)
            ]
        for target in (t for row in targets for t in row):
            ratios.add(target.counters)
        with ratios.timed("time/pack_s"):
            segments = [rescale([t.segment for t in row], self._config.loss_reduction) for row in targets]
            pool = [*self._schedule.waiting, *(s for row in segments for s in row)]
            scheduled = self._schedule.schedule(segments, micro_steps)
            waiting = {id(s) for s in self._schedule.waiting}
            dummy = self._collate(()) if () in scheduled.micro_steps else {}
            batches = [self._collate(segments) if segments else dummy for segments in scheduled.micro_steps]
        extra = len(batches) - micro_steps
        whole = self._config.gradient_accumulation_steps
        allowed = self._config.on_infeasible == "extra_steps" or len(batches) <= whole
        assert extra == 0 or (extra > 0 and allowed), (len(batches), micro_steps, whole)
        ratios.add(scheduled.counters)
        report = WindowReport(
            raw_micro_batches=len(micro_batches),
            packs=sum(1 for segments in scheduled.micro_steps if segments),
            weight_sum=scheduled.weight_sum,
            fill=scheduled.fill,
            counters=ratios.pairs(),
            left_over=scheduled.left_over,
        )
        due = [s for s in pool if id(s) not in waiting]
        return BuiltWindow(
            due=due, slots=micro_steps, micro_steps=scheduled.micro_steps, batches=batches, report=report
        )

    def _roll_out(self, micro_batches: list[MicroBatch], global_step: int) -> list[list[Rollout | None]]:
        """One rollout per sample, or None where the sample is trained on its reference answer."""
        seed, rank = self._config.seed, self._rank
        rollouts: list[list[Rollout | None]] = [[None] * len(batch.samples) for batch in micro_batches]
        places: list[tuple[int, int]] = []
        requests: list[RolloutRequest] = []
        for micro_step, batch in enumerate(micro_batches):
            for i, sample in enumerate(batch.samples):
                where = (seed, global_step, micro_step, rank, i)
                if derive_uniform("reference", *where) < self._config.reference_fraction:
                    continue
                places.append((micro_step, i))
                requests.append(RolloutRequest(prompt_ids=read_prompt(sample), seed=derive_seed("rollout", *where)))
        for (micro_step, i), rollout in zip(places, self._backend.generate(requests), strict=True):
            rollouts[micro_step][i] = rollout
        return rollouts

    def _build(self, sample: Sample, rollout: Rollout | None) -> Target:
        if rollout is None:
            return self._targets.build_reference(sample)
        return self._targets.build(sample, rollout)
