"""Runs what is compared: the real trainer in five configurations, and the limit without one."""

from __future__ import annotations

import statistics
import tempfile
import time
from itertools import pairwise
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from benchmarks.step_time.workloads import FixedRollouts, Workload
from examples.digits.images import build_image_tokenizer
from packsched import FillStats, PackLayout, WindowBuffer
from rollout_sft import RolloutSFTConfig, RolloutSFTTrainer
from rollout_sft.inputs.base import InputAdapter
from rollout_sft.inputs.segment import Segment, pack_of
from rollout_sft.model.forward import prepare_forward
from rollout_sft.reporting.log_line import LogLineCallback
from rollout_sft.step.collate import collate_pack, forward_inputs, with_media
from rollout_sft.step.loss import weighted_loss
from rollout_sft.step.scheduled_window import ScheduledWindow

VARIANTS: dict[str, dict[str, Any]] = {
    "padded micro-batches": {"packing": False, "attention": "model"},
    "packed per micro-batch": {},
    "window, balanced": {"pack_objective": "balanced"},
    "window, dense": {"pack_objective": "dense"},
    "window, dense, skip": {"pack_objective": "dense", "idle_micro_steps": "skip"},
}
LIMIT = "limit: full packs, no Trainer"


def pack_per_micro_batch(micro_batches: list[list[Segment]], micro_steps: int) -> ScheduledWindow:
    """Makes one pack of each raw micro-batch, however long."""
    return ScheduledWindow(packs=[pack_of(batch) for batch in micro_batches], fill=FillStats(), counters={})


class Clock:
    """Reads the processor time on a CPU; on a GPU, waits for it and reads the wall clock."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"

    def now(self) -> float:
        if not self.cuda:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


class Steps(TrainerCallback):
    """
    Times each optimizer step, from its first raw micro-batch on, and keeps the gradient of the first.

    With `must_not_wait`, waiting for the GPU is an error from the first raw micro-batch until the gradient is complete:
    while the window is built, collated and copied, in every micro-step, and in what the Trainer does between them.
    """

    def __init__(self, clock: Clock):
        self.clock, self.began, self.seconds = clock, 0.0, []
        self.keep_gradient, self.gradient = False, None
        self.must_not_wait = False

    def begin(self) -> None:
        self.began = self.clock.now()
        if self.must_not_wait:
            torch.cuda.set_sync_debug_mode("error")

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.must_not_wait:
            torch.cuda.set_sync_debug_mode("default")
        if self.keep_gradient:
            self.gradient, self.keep_gradient = flat_gradient(model), False

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(self.clock.now() - self.began)


class Variant:
    """Holds one trainer on the shared model; `run` trains the windows once more."""

    def __init__(self, name: str, workload: Workload, data: FixedRollouts, model: PreTrainedModel, cpu: bool):
        batches = [data.segments[i : i + workload.batch_size] for i in range(0, len(data), workload.batch_size)]
        longest = max(sum(s.encoded_len for s in batch) for batch in batches)
        unplanned = name == "packed per micro-batch"
        self.folder = tempfile.TemporaryDirectory()
        args = RolloutSFTConfig(
            output_dir=self.folder.name,
            global_max_length=max(longest, workload.packing_length) if unplanned else workload.packing_length,
            per_device_train_batch_size=workload.batch_size,
            gradient_accumulation_steps=workload.gradient_accumulation_steps,
            post_rollout_pack_scope="window",
            reference_fraction=1.0,
            learning_rate=0.0,
            max_grad_norm=0.0,
            train_sampling_strategy="sequential",
            num_train_epochs=1,
            use_cpu=cpu,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **VARIANTS[name],
        )
        model.set_attn_implementation("sdpa")
        self.name, self.model = name, model
        self.trainer = RolloutSFTTrainer(
            model=model,
            args=args,
            processing_class=build_image_tokenizer(),
            image_processor=data.image_processor,
            train_dataset=data,
            target_builder=data,
            rollout_backend=NoRollouts(),
        )
        self.trainer.fill_estimate._due = []  # it takes its second once in a run, not in each step
        self.attention = model.config._attn_implementation
        if unplanned:
            self.trainer.schedule.schedule = pack_per_micro_batch
        self.steps = Steps(Clock(args.device))
        self.trainer.pop_callback(LogLineCallback)
        self.trainer.add_callback(self.steps)
        self.forwards = 0
        self.packing = 0.0
        self._watch()

    def _watch(self) -> None:
        trainer = self.trainer
        build, compute, collate = trainer.get_batch_samples, trainer.compute_loss, trainer.window_builder.collate
        schedule = trainer.schedule.schedule
        host = time.perf_counter if self.steps.clock.cuda else time.process_time

        def get_batch_samples(*args):
            self.steps.begin()
            return build(*args)

        def timed(work):
            def run(*args):
                start = host()
                result = work(*args)
                if self.steps.seconds:  # the first step warms up
                    self.packing += host() - start
                return result

            return run

        def compute_loss(*args, **kwargs):
            self.forwards += 1
            return compute(*args, **kwargs)

        trainer.get_batch_samples, trainer.compute_loss = get_batch_samples, compute_loss
        trainer.window_builder.collate = timed(collate)
        trainer.schedule.schedule = timed(schedule)

    def run(self) -> None:
        self.model.set_attn_implementation(self.attention)
        self.steps.seconds, self.forwards, self.packing = [], 0, 0.0
        self.trainer.optimizer = self.trainer.lr_scheduler = None
        self.trainer.train()
        self.trainer.optimizer = self.trainer.lr_scheduler = None
        self.trainer.accelerator.free_memory()

    def seconds(self) -> float:
        """Returns the mean of the steps after the first, which warms up."""
        return statistics.mean(self.steps.seconds[1:])

    def overhead(self) -> float:
        """Returns the share of scheduling and collating in the steps after the first."""
        return self.packing / sum(self.steps.seconds[1:])


class NoRollouts:
    """A backend that is never asked: every sample is trained on its reference."""

    def __init__(self):
        self.counters = {}

    def generate(self, requests):
        assert not requests
        return []


class Limit:
    """
    Trains the same tokens in perfectly full packs, cut where a pack ends, in a bare loop with nothing around it.

    An image cannot be cut: segments with images stay whole, in the fewest packs, and their pixels are made beforehand.
    """

    name = LIMIT

    def __init__(self, workload: Workload, data: FixedRollouts, model: PreTrainedModel, attention: str):
        self.model, self.attention, self.clock = model, attention, Clock(model.device)
        windows = [data.segments[i : i + workload.window] for i in range(0, len(data), workload.window)]
        if workload.images:
            self.windows = [self._whole(window, workload, data.adapter) for window in windows]
        else:
            self.windows = [self._packs(window, workload.packing_length) for window in windows]
        self.cut = not workload.images and any(len(packs) > 1 for packs in self.windows)
        self.forwards = sum(len(packs) for packs in self.windows)

    def _packs(self, segments: list[Segment], cap: int) -> list[dict[str, Any]]:
        fields = {name: torch.cat([getattr(s, name) for s in segments]) for name in ("input_ids", "targets", "weights")}
        starts = PackLayout.from_lengths([s.encoded_len for s in segments]).cu_seqlens.tolist()
        packs = []
        for begin in range(0, starts[-1], cap):
            end = min(begin + cap, starts[-1])
            borders = sorted({begin, end, *(p for p in starts if begin < p < end)})
            parts = []
            for a, b in pairwise(borders):
                weights = fields["weights"][a:b].tolist()
                weights[-1] = 0.0
                parts.append(
                    Segment.from_lists(fields["input_ids"][a:b].tolist(), fields["targets"][a:b].tolist(), weights)
                )
            batch = forward_inputs(pack_of(parts))
            kept = torch.cat([p.weights for p in parts]).nonzero().flatten()
            batch |= {"logits_to_keep": kept, "targets": torch.cat([p.targets for p in parts])[kept]}
            packs.append(self._on_device(batch))
        return packs

    def _whole(self, segments: list[Segment], workload: Workload, adapter: InputAdapter) -> list[dict[str, Any]]:
        window = WindowBuffer[Segment](workload.packing_length, workload.gradient_accumulation_steps)
        for segment in segments:
            window.add(segment, encoded_len=segment.encoded_len)
        batches = [
            with_media(collate_pack(pack, filler_id=0, adapter=adapter), adapter)
            for pack in window.take_packs()
            if pack.segments
        ]
        return [self._on_device({**batch.forward, "targets": batch.targets}) for batch in batches]

    def _on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {k: v.to(self.model.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}

    def run(self) -> None:
        self.model.set_attn_implementation(self.attention)
        self.model.train()
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, fused=True)
        self.times = []
        for packs in self.windows:
            start, total = self.clock.now(), sum(len(pack["targets"]) for pack in packs)
            for pack in packs:
                targets = (inputs := dict(pack)).pop("targets")
                inputs = prepare_forward(self.model, inputs)
                ones = torch.ones(len(targets), device=targets.device)
                (weighted_loss(self.model(**inputs).logits[0], targets, ones) / total).backward()
            if len(self.times) == 0:
                self.gradient = flat_gradient(self.model)
            optimizer.step()
            self.model.zero_grad()
            self.times.append(self.clock.now() - start)

    def seconds(self) -> float:
        """Returns the mean of the steps after the first, which warms up."""
        return statistics.mean(self.times[1:])


def flat_gradient(model: torch.nn.Module) -> torch.Tensor:
    """Returns the gradients of all parameters in one row."""
    return torch.cat([p.grad.detach().reshape(-1) for p in model.parameters()])
