"""Builds one rank's window: before the first forward of an optimizer step, or in waves between the forwards.

    raw micro-batches -> rollouts (one batched call) -> parse, match, build -> schedule -> collate

Everything here is local to the rank and may fail; the trainer makes the ranks agree on the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from packsched import FillStats, Pack
from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.data.samples import MicroBatch, Sample, read_images, read_prompt
from rollout_sft.inputs.base import InputAdapter
from rollout_sft.inputs.segment import Segment, pack_of
from rollout_sft.reporting.metrics import WindowReport, check_counters
from rollout_sft.reporting.stopwatch import phase
from rollout_sft.rollouts.base import Rollout, RolloutBackend, RolloutRequest
from rollout_sft.rollouts.check_answers import AnswerLimits
from rollout_sft.rollouts.endings import ended_counters
from rollout_sft.step.asked import AskedRollouts
from rollout_sft.step.collate import TEXT, PackedBatch
from rollout_sft.step.open_window import BuiltWindow, OpenWindow, Place
from rollout_sft.step.oversized import OversizedFilter
from rollout_sft.step.reductions import rescale
from rollout_sft.step.scheduled_window import Schedule
from rollout_sft.step.seeds import derive_seed, derive_uniform
from rollout_sft.step.token_flow import TokenFlow
from rollout_sft.step.waves import full_packs, schedule_rest
from rollout_sft.targets.base import Target, TargetBuilder
from rollout_sft.targets.notes import naming, noted


class WindowBuilder:
    """
    Builds a rank's windows.

    Args:
        config (`RolloutSFTConfig`):
            Gives the seed and the reference fraction.
        schedule (`Schedule`):
            Decides which segments share a forward.
        target_builder (`TargetBuilder`):
            Makes segments.
        backend (`RolloutBackend`):
            Generates the rollouts.
        limits (`AnswerLimits`):
            What the backend's answers can be; any other answer is refused.
        collate (`Callable[[Pack[Segment]], PackedBatch]`):
            Makes the tensors of one pack.
        rank (`int`):
            This process's rank; part of every seed.
        adapter (`InputAdapter`, *optional*):
            Checks that each segment has the tokens of its images.
    """

    def __init__(
        self,
        config: RolloutSFTConfig,
        *,
        schedule: Schedule,
        target_builder: TargetBuilder,
        backend: RolloutBackend,
        limits: AnswerLimits,
        collate: Callable[[Pack[Segment]], PackedBatch],
        rank: int,
        adapter: InputAdapter = TEXT,
    ):
        self.collate = collate
        self._config = config
        self._schedule = schedule
        self._oversized = OversizedFilter(config)
        self._target_builder = target_builder
        self._backend = backend
        self._limits = limits
        self._rank = rank
        self._adapter = adapter
        self._flow = TokenFlow(config.world_size)
        self._open: OpenWindow | None = None

    def build(
        self, raw: Iterator[MicroBatch], micro_steps: int, global_step: int, cuts: Sequence[int] = ()
    ) -> BuiltWindow:
        """
        Pulls at most `micro_steps` micro-batches and builds the first wave of their window: all of it without cuts.

        Args:
            raw (`Iterator[MicroBatch]`):
                The epoch's data; it may end early.
            micro_steps (`int`):
                The number of micro-steps of this window.
            global_step (`int`):
                Optimizer steps done so far; part of every seed.
            cuts (`Sequence[int]`, *optional*):
                The longest response of each wave but the last. Needs a
                [`~rollout_sft.rollouts.base.StreamingBackend`].

        Returns:
            [`BuiltWindow`]: complete with `micro_steps` batches ([`ScheduledWindow`] says when there are more), or the
            packs that may be trained before the next wave.
        """
        self.close()
        where = f"in step {global_step + 1} on rank {self._rank}"
        with noted(where):
            micro_batches = [batch for _, batch in zip(range(micro_steps), raw, strict=False)]
            on_reference, requests = self._requests(micro_batches, global_step)
            samples = [micro_batches[row].samples[i] for row, i in requests]
            with phase("rollout"):
                asked_for = list(requests.values())
                asked = AskedRollouts(self._backend, asked_for, samples, self._limits, in_waves=bool(cuts))
            self._open = OpenWindow(
                where=where,
                micro_batches=micro_batches,
                micro_steps=micro_steps,
                cuts=[*cuts, None],
                on_reference=on_reference,
                asked_for=list(requests),
                asked=asked,
            )
        return self.build_next()

    def build_next(self) -> BuiltWindow:
        """Waits for the next wave of the window that [`build`] began, and builds it."""
        window = self._open
        assert window is not None
        assert window.cuts, "the window is complete"
        with noted(window.where):
            cut = window.cuts.pop(0)
            window.waves += 1
            self._build_wave(window, cut)
            return self._close_window(window) if cut is None else self._early_packs(window)

    def train_early(self, built: BuiltWindow, number: int) -> list[PackedBatch]:
        """
        Takes packs out of an incomplete window, because they are trained now; the other segments wait.

        Args:
            built ([`BuiltWindow`]):
                The result of the latest [`build`] or [`build_next`].
            number (`int`):
                How many; equal on every rank.
        """
        assert self._open is not None
        assert not built.is_last
        batches = built.batches[:number]
        self._open.train([batch.pack for batch in batches])
        return batches

    def close(self) -> None:
        """Ends the rollouts that are under way, if a window was left incomplete."""
        if self._open is not None:
            self._open.asked.close()
            self._open = None

    def _requests(
        self, micro_batches: list[MicroBatch], global_step: int
    ) -> tuple[list[Place], dict[Place, RolloutRequest]]:
        """Returns the samples that are trained on their reference answer, and the requests of all others."""
        seed, rank = self._config.seed, self._rank
        on_reference: list[Place] = []
        requests: dict[Place, RolloutRequest] = {}
        for micro_step, batch in enumerate(micro_batches):
            for i, sample in enumerate(batch.samples):
                where = (seed, global_step, micro_step, rank, i)
                if derive_uniform("reference", *where) < self._config.reference_fraction:
                    on_reference.append((micro_step, i))
                    continue
                seed_of_sample = derive_seed("rollout", *where)
                requests[micro_step, i] = RolloutRequest(
                    prompt_ids=read_prompt(sample), seed=seed_of_sample, images=read_images(sample)
                )
        return on_reference, requests

    def _build_wave(self, window: OpenWindow, cut: int | None) -> None:
        """Waits for a wave and makes its segments wait for a pack. Samples without a rollout are in the first wave."""
        with phase("rollout"):
            rollouts = window.asked.wait(cut)
        if cut is None:
            window.ratios.add(check_counters(self._backend.counters, "the rollout backend"))
        if self._config.end_rollouts != "never":
            window.ratios.add(ended_counters(list(rollouts.values()), self._limits.max_new_tokens))
        answers: dict[Place, Rollout | None] = dict.fromkeys(window.on_reference)
        answers.update({window.asked_for[i]: rollout for i, rollout in rollouts.items()})
        window.on_reference = []
        window.response_lens += [len(rollout.response_ids) for rollout in rollouts.values()]
        rows = [[p for p in sorted(answers) if p[0] == row] for row in range(len(window.micro_batches))]
        with phase("build"):
            samples = [batch.samples for batch in window.micro_batches]
            targets = [[self._build(samples[row][i], answers[row, i]) for row, i in places] for places in rows]
        for target in (t for row in targets for t in row):
            window.ratios.add(check_counters(target.counters, "the target builder"))
        with phase("pack"):
            fitting, oversized = self._oversized.apply([[t.segment for t in row] for row in targets])
            window.ratios.add(oversized)
            for places, row, kept in zip(rows, targets, fitting, strict=True):
                fits = {id(segment) for segment in kept}
                left = [place for place, target in zip(places, row, strict=True) if id(target.segment) in fits]
                window.waiting.update(zip(left, rescale(kept, self._config.loss_reduction), strict=True))

    def _early_packs(self, window: OpenWindow) -> BuiltWindow:
        """Returns the packs that may be trained before the next wave; at least one micro-step is left for the rest."""
        left = window.micro_steps - len(window.early)
        with phase("pack"):
            waiting = [segment for row in window.rows() for segment in row]
            packs = full_packs(waiting, self._config.packing_length)[: left - 1]
            batches = [self.collate(pack) for pack in packs]
        known = len(window.response_lens)
        samples = sum(len(batch.samples) for batch in window.micro_batches)
        built = samples - len(window.asked_for) + known
        weight = sum(s.weight_sum for s in (*waiting, *(s for pack in window.early for s in pack.segments)))
        report = WindowReport(
            raw_micro_batches=len(window.micro_batches),
            packs=len(packs),
            weight_sum=weight * samples / max(1, built),
            fill=FillStats(),
        )
        dummy = self.collate(pack_of(()))
        return BuiltWindow(due=[], micro_steps=left, batches=batches, dummy=dummy, report=report, is_last=False)

    def _close_window(self, window: OpenWindow) -> BuiltWindow:
        """Schedules everything that waits, in the micro-steps that are left."""
        early, micro_steps = window.early, window.micro_steps
        with phase("pack"):
            segments = window.rows()
            pool = [
                *self._schedule.waiting,
                *(s for pack in early for s in pack.segments),
                *(s for row in segments for s in row),
            ]
            scheduled = schedule_rest(self._schedule, segments, early=early, micro_steps=micro_steps)
            elsewhere = {id(s) for s in (*self._schedule.waiting, *scheduled.given)}
            dummy = self.collate(pack_of(()))
            batches = [self.collate(pack) if pack.segments else dummy for pack in scheduled.packs]
        extra = len(early) + len(batches) - micro_steps
        whole = self._config.gradient_accumulation_steps
        allowed = self._config.on_infeasible == "extra_steps" or len(batches) <= whole
        assert extra == 0 or (extra > 0 and allowed), (len(early), len(batches), micro_steps, whole)
        window.ratios.add({**scheduled.counters, **self._flow.take()})
        if self._config.rollout_waves > 1:
            early_packs = (float(len(early)), 1.0)
            window.ratios.add({"rollout/waves": (float(window.waves), 1.0), "packing/early_packs": early_packs})
        report = WindowReport(
            raw_micro_batches=len(window.micro_batches),
            packs=len(early) + sum(1 for pack in scheduled.packs if pack.segments),
            weight_sum=sum(s.weight_sum for pack in early for s in pack.segments) + scheduled.weight_sum,
            fill=scheduled.fill,
            counters=window.ratios.pairs(),
            left_over=scheduled.left_over,
            response_lens=tuple(window.response_lens) if self._config.rollout_waves > 1 else (),
        )
        due = [*(s for s in pool if id(s) not in elsewhere), *scheduled.received]
        return BuiltWindow(
            due=due,
            micro_steps=micro_steps - len(early),
            batches=batches,
            dummy=dummy,
            report=report,
            early=early,
        )

    def _build(self, sample: Sample, rollout: Rollout | None) -> Target:
        """Builds a sample's target; adds the sample's images to its segment, and checks their tokens."""
        with naming(self._target_builder, sample):
            if rollout is None:
                target = self._target_builder.build_reference(sample)
            else:
                target = self._target_builder.build(sample, rollout)
            images = read_images(sample)
            if images and not target.segment.images:
                target = replace(target, segment=replace(target.segment, images=images))
            self._adapter.check(target.segment)
            self._flow.add(read_prompt(sample), rollout, target.segment)
            return target
