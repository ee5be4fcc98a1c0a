"""Builds one rank's window before the first forward of an optimizer step.

    raw micro-batches -> rollouts (one batched call) -> parse, match, build -> schedule -> collate

Everything here is local to the rank and may fail; the trainer makes the ranks agree on the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from packsched import Pack
from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.data.samples import MicroBatch, Sample, read_images, read_prompt
from rollout_sft.inputs.base import InputAdapter
from rollout_sft.inputs.segment import Segment, pack_of
from rollout_sft.reporting.metrics import Ratios, WindowReport, check_counters
from rollout_sft.reporting.stopwatch import phase
from rollout_sft.rollouts.base import Rollout, RolloutBackend, RolloutRequest
from rollout_sft.rollouts.check_answers import AnswerLimits, checked
from rollout_sft.rollouts.endings import ended_counters
from rollout_sft.step.collate import TEXT, PackedBatch
from rollout_sft.step.oversized import OversizedFilter
from rollout_sft.step.reductions import rescale
from rollout_sft.step.scheduled_window import Schedule
from rollout_sft.step.seeds import derive_seed, derive_uniform
from rollout_sft.targets.base import Target, TargetBuilder
from rollout_sft.targets.notes import naming, noted


@dataclass(frozen=True, kw_only=True)
class BuiltWindow:
    """
    Holds one rank's window, packed and collated.

    Args:
        due (`list[Segment]`):
            The segments that this rank has to train: those that waited before the window and those that it built,
            without those that wait now, and in scope `global` with those that it got for those that it gave away.
        micro_steps (`int`):
            How many micro-steps the Trainer counts.
        batches (`list[PackedBatch]`):
            One per micro-step; an idle micro-step has the dummy. There are more where the window did not fit.
        dummy (`PackedBatch`):
            What a forward without segments runs.
        report (`WindowReport`):
            What the other ranks and the log need to know about the window.
    """

    due: list[Segment]
    micro_steps: int
    batches: list[PackedBatch]
    dummy: PackedBatch
    report: WindowReport

    @property
    def pack_lens(self) -> list[list[int]]:
        """Returns, for each pack, the lengths of its segments."""
        return [list(batch.pack.layout.encoded_lens) for batch in self.batches]


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

    def build(self, raw: Iterator[MicroBatch], micro_steps: int, global_step: int) -> BuiltWindow:
        """
        Pulls at most `micro_steps` micro-batches and packs their segments.

        Args:
            raw (`Iterator[MicroBatch]`):
                The epoch's data; it may end early.
            micro_steps (`int`):
                The number of micro-steps of this window.
            global_step (`int`):
                Optimizer steps done so far; part of every seed.

        Returns:
            [`BuiltWindow`]: with `micro_steps` batches; [`ScheduledWindow`] says when there are more.
        """
        with noted(f"in step {global_step + 1} on rank {self._rank}"):
            return self._build_window(raw, micro_steps, global_step)

    def _build_window(self, raw: Iterator[MicroBatch], micro_steps: int, global_step: int) -> BuiltWindow:
        ratios = Ratios()
        micro_batches = [batch for _, batch in zip(range(micro_steps), raw, strict=False)]
        with phase("rollout"):
            rollouts = self._roll_out(micro_batches, global_step)
        ratios.add(check_counters(self._backend.counters, "the rollout backend"))
        if self._config.end_rollouts != "never":
            answered = [rollout for row in rollouts for rollout in row if rollout is not None]
            ratios.add(ended_counters(answered, self._limits.max_new_tokens))
        with phase("build"):
            targets = [
                [self._build(sample, rollout) for sample, rollout in zip(batch.samples, row, strict=True)]
                for batch, row in zip(micro_batches, rollouts, strict=True)
            ]
        for target in (t for row in targets for t in row):
            ratios.add(check_counters(target.counters, "the target builder"))
        with phase("pack"):
            fitting, oversized = self._oversized.apply([[t.segment for t in row] for row in targets])
            segments = [rescale(row, self._config.loss_reduction) for row in fitting]
            pool = [*self._schedule.waiting, *(s for row in segments for s in row)]
            scheduled = self._schedule.schedule(segments, micro_steps)
            elsewhere = {id(s) for s in (*self._schedule.waiting, *scheduled.given)}
            dummy = self.collate(pack_of(()))
            batches = [self.collate(pack) if pack.segments else dummy for pack in scheduled.packs]
        extra = len(batches) - micro_steps
        whole = self._config.gradient_accumulation_steps
        allowed = self._config.on_infeasible == "extra_steps" or len(batches) <= whole
        assert extra == 0 or (extra > 0 and allowed), (len(batches), micro_steps, whole)
        ratios.add({**oversized, **scheduled.counters})
        report = WindowReport(
            raw_micro_batches=len(micro_batches),
            packs=sum(1 for pack in scheduled.packs if pack.segments),
            weight_sum=scheduled.weight_sum,
            fill=scheduled.fill,
            counters=ratios.pairs(),
            left_over=scheduled.left_over,
        )
        due = [*(s for s in pool if id(s) not in elsewhere), *scheduled.received]
        return BuiltWindow(due=due, micro_steps=micro_steps, batches=batches, dummy=dummy, report=report)

    def _roll_out(self, micro_batches: list[MicroBatch], global_step: int) -> list[list[Rollout | None]]:
        """Returns one rollout per sample, or None where the sample is trained on its reference answer."""
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
                seed_of_sample = derive_seed("rollout", *where)
                requests.append(
                    RolloutRequest(prompt_ids=read_prompt(sample), seed=seed_of_sample, images=read_images(sample))
                )
        samples = [micro_batches[micro_step].samples[i] for micro_step, i in places]
        with noted(f"while the rollout backend answered {len(samples)} samples: {_ids(samples)}"):
            answers = checked(self._backend.generate(requests), requests, self._limits)
        for (micro_step, i), rollout in zip(places, answers, strict=True):
            rollouts[micro_step][i] = rollout
        return rollouts

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
            return target


def _ids(samples: Sequence[Sample]) -> str:
    named = ", ".join(repr(sample.get("id")) for sample in samples[:8])
    return f"{named} and {len(samples) - 8} more" if len(samples) > 8 else named
