"""`RolloutSFTTrainer`: Hugging Face's loop, fed with packs.

    get_batch_samples    once per optimizer step: GA raw micro-batches -> rollouts -> targets -> segments -> packs
    training_step        one micro-step: its pack, or none, or several
    compute_loss         one pack: sum of weight * cross-entropy, divided by the whole window's weight
    evaluation_loop      rollouts are scored; nothing is packed and no training state is touched
    log                  adds the window's metrics to the line of the optimizer step

No loop is forked: exactly as many batches are returned as the Trainer asked for, since it finds its
synchronising step by counting them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput

from rollout_sft.checkpoint.resume import ResumableTrainer
from rollout_sft.checks.equivalence import EquivalenceReport, check_arithmetic, check_bookkeeping
from rollout_sft.checks.leak_probe import IsolationReport, check_isolation
from rollout_sft.checks.unsupported import (
    reject_empty_data,
    reject_empty_stream,
    reject_hooks,
    reject_own_loss,
    reject_unknown_positions,
    reject_virtual_tokens,
    warn_about_dropout,
)
from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.data.samples import MicroBatch, Sample, collate_raw, read_id, read_prompt
from rollout_sft.inputs.segment import Segment
from rollout_sft.model.attention import choose_attention, mark_packed
from rollout_sft.model.forward import Batch, forward_names
from rollout_sft.ranks.distributed import together
from rollout_sft.reporting.callbacks import make_callbacks
from rollout_sft.reporting.log_line import LogLineCallback
from rollout_sft.reporting.metrics import Counters, Ratios, StepMetrics, WindowReport
from rollout_sft.reporting.window_fill import FillEstimate
from rollout_sft.rollouts.base import Rollout, RolloutBackend, RolloutRequest
from rollout_sft.rollouts.lifecycle import Generation
from rollout_sft.step.build import BuiltWindow, WindowBuilder
from rollout_sft.step.collate import collate_pack, collate_padded
from rollout_sft.step.loss import weighted_loss
from rollout_sft.step.micro_steps import arrange, run_slot, to_device
from rollout_sft.step.non_finite import FiniteTrainer, carried_by_gradient
from rollout_sft.step.schedule import make_schedule
from rollout_sft.step.seeds import derive_seed
from rollout_sft.targets.base import TargetBuilder
from rollout_sft.targets.loading import make_target_builder

logger = logging.getLogger(__name__)


class RolloutSFTTrainer(FiniteTrainer, ResumableTrainer):
    """
    Trains a causal language model on its own rollouts, packed per micro-batch or per accumulation window.

    Args:
        model (`PreTrainedModel`):
            A causal language model whose forward takes `position_ids`.
        args (`RolloutSFTConfig`):
            Everything that can be configured.
        processing_class (`PreTrainedTokenizerBase`):
            The tokenizer; needs an end token.
        target_builder (`TargetBuilder`, *optional*):
            Makes segments of samples and rollouts; the one that `args.target_builder` names when not given.
        rollout_backend (`RolloutBackend`, *optional*):
            Generates for training; the one that `args.rollout_backend` names when not given.
        kwargs:
            As in `Trainer`: `train_dataset`, `eval_dataset`, `callbacks`, `optimizers`, ... but no `data_collator`,
            `compute_loss_func`, `compute_metrics` or `preprocess_logits_for_metrics`.

    Attributes:
        last_window (`list[list[int]]`):
            For each pack of the last window of this rank, the lengths of its segments.

    Raises:
        `ValueError`: the tokenizer has no end token, the model would be trained wrongly
            ([`~rollout_sft.checks.unsupported`]), or a hook is given that would never be called.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: RolloutSFTConfig,
        *,
        processing_class: PreTrainedTokenizerBase,
        target_builder: TargetBuilder | None = None,
        rollout_backend: RolloutBackend | None = None,
        **kwargs: Any,
    ):
        if processing_class is None or processing_class.eos_token_id is None:
            raise ValueError(
                "the tokenizer has no end token, so no response could end; "
                "set tokenizer.eos_token to one of its tokens."
            )
        reject_hooks(kwargs)
        kwargs["data_collator"] = collate_raw
        super().__init__(model=model, args=args, processing_class=processing_class, **kwargs)
        # transformers before 5.19 reads this instead of `loss_is_scaled_for_ga`.
        self.model_accepts_loss_kwargs = True
        self.args: RolloutSFTConfig
        self._tokenizer = processing_class
        unwrapped = self.accelerator.unwrap_model(self.model)
        reject_own_loss(unwrapped)
        reject_virtual_tokens(unwrapped)
        self._forward_names = forward_names(unwrapped)
        if args.packing:
            reject_unknown_positions(unwrapped, self._forward_names)
            warn_about_dropout(unwrapped)
            autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
            choose_attention(unwrapped, args.attention, device=args.device, autocast=autocast)
        self._isolation_checked = not (args.packing and args.check_isolation)
        self.schedule = make_schedule(args)
        self.fill_estimate = FillEstimate(args)
        self.target_builder = target_builder or make_target_builder(processing_class, args)
        self.generation = Generation(
            args, processing_class, lambda: self.accelerator.unwrap_model(self.model), rollout_backend
        )
        self._window_builder = WindowBuilder(
            args,
            schedule=self.schedule,
            target_builder=self.target_builder,
            backend=self.generation.train,
            collate=self._collate,
            rank=args.process_index,
        )
        self._validated = False
        if args.validate_schedule != "off" and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError(
                f"rollout_matching.validate_schedule is {args.validate_schedule}, which compares whole gradients, but "
                "FSDP and DeepSpeed shard them. Validate the same configuration on one process or with DDP."
            )
        self._metrics = StepMetrics()
        self.last_window: list[list[int]] = []
        self.pop_callback(ProgressCallback)
        self.pop_callback(PrinterCallback)
        self.add_callback(LogLineCallback)
        self.add_callback(self.generation)
        for callback in make_callbacks(args.callbacks, self):
            self.add_callback(callback)

    # --- one window --------------------------------------------------------------------------------------------

    def get_batch_samples(  # type: ignore[override]  # the denominator of the loss need not be an integer
        self, epoch_iterator: Iterator[MicroBatch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], float | None]:
        """
        Pulls the window's raw micro-batches and returns exactly `num_batches` packed ones.

        Args:
            epoch_iterator (`Iterator[MicroBatch]`):
                Raw micro-batches.
            num_batches (`int`):
                GA, or what is left of the epoch.
            device (`torch.device`):
                Where the batches shall lie.

        Returns:
            `tuple[list[Batch], float]`: the batches, and the sum of the loss weights over all of them and all
            ranks, which `compute_loss` divides by. No batches at all once no rank has data left.
        """
        self._metrics.training_ends()
        if not self._isolation_checked:
            self._check_isolation()
        if self.args.reference_fraction < 1:
            self._sync_rollouts(windows=1)
        window, reports = together(
            lambda: self._window_builder.build(epoch_iterator, num_batches, self.state.global_step),
            share=lambda window: window.report,
        )
        if not any(report.raw_micro_batches for report in reports):
            reject_empty_stream(self.state.global_step)
            return [], None
        weight_sum = sum(report.weight_sum for report in reports)
        if weight_sum <= 0:
            raise ValueError(
                f"step {self.state.global_step + 1}: no position of the window is supervised (loss weights sum to "
                f"{weight_sum} over {len(reports)} ranks), so there is nothing to train; check the target builder."
            )
        self.last_window = [[segment.encoded_len for segment in segments] for segments in window.micro_steps]
        self.fill_estimate.add([length for lens in self.last_window for length in lens])
        self._metrics.add(reports)
        if self.args.validate_schedule == "every_window" or (
            self.args.validate_schedule == "first_window" and not self._validated
        ):
            self._validate(window, weight_sum, device)
        self.generation.sleep()
        self._metrics.training_begins()
        return self._slots(window, reports, device), weight_sum

    def _slots(self, window: BuiltWindow, reports: list[WindowReport], device: torch.device) -> list[Batch]:
        """The window's packs, laid into the micro-steps that the Trainer counts."""
        filled = zip(window.micro_steps, window.batches, strict=True)
        of_segments = [(to_device(batch, device), segments) for segments, batch in filled if segments]
        self.watch(of_segments)
        packs = [pack for pack, _ in of_segments]
        most = max(report.packs for report in reports)
        self._metrics.add_forwards(most, window.slots)
        if most > max(window.slots, self.args.gradient_accumulation_steps):
            logger.warning(
                "this window takes %d packs on the fullest rank, %d more than its micro-steps, so its last micro-step "
                "runs %d of them. Lower per_device_train_batch_size, or raise gradient_accumulation_steps or "
                "global_max_length.",
                most,
                most - window.slots,
                most - window.slots + 1,
            )
        return arrange(
            packs,
            window.slots,
            most=most,
            skip_idle=self.args.idle_micro_steps == "skip",
            make_dummy=lambda: to_device(self._collate(()), device),
        )

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | float | None = None
    ) -> torch.Tensor:
        """One micro-step, whatever its slot holds; see [`~rollout_sft.step.micro_steps`]."""
        self.micro_step += 1
        step = super().training_step
        return run_slot(self, model, inputs, lambda pack: step(model, pack, num_items_in_batch))

    def _sync_rollouts(self, *, windows: int) -> None:
        """Hands changed weights to the rollout engine; the seconds count for the line of the next window."""
        seconds = self.generation.sync()
        if self.generation.is_synced:
            self._metrics.add_pairs({"time/weight_sync_s": (seconds, float(windows))})

    def _check_isolation(self) -> None:
        """The leak probe, on the wrapped model in the precision of training, before the first step."""

        def probe() -> IsolationReport:
            with self.compute_loss_context_manager():
                return check_isolation(self.model_wrapped)

        report, _ = together(probe, share=lambda _: None)
        self._isolation_checked = True
        logger.info("packed segments are isolated: leak %.1e, copies %.1e.", report.leak, report.copies)

    def _validate(self, window: BuiltWindow, weight_sum: float, device: torch.device) -> None:
        """Math equivalence: this window as scheduled against its segments one by one, on every rank."""
        model: nn.Module = self.accelerator.unwrap_model(self.model)

        def loss_of(batch: Batch) -> torch.Tensor:
            with self.compute_loss_context_manager():
                loss: torch.Tensor = self.compute_loss(model, to_device(batch, device), num_items_in_batch=weight_sum)
            return loss

        def compare() -> EquivalenceReport:
            check_bookkeeping(window.due, window.micro_steps, window.batches)
            filler = self._tokenizer.eos_token_id
            return check_arithmetic(model, loss_of, window.due, window.batches, filler_id=filler)

        _, reports = together(compare, share=lambda report: report)
        self._validated = True
        worst = {
            "equivalence/loss": max(report.loss for report in reports),
            "equivalence/gradient": max(report.gradient for report in reports),
        }
        self._metrics.add_values(worst)

    def _collate(self, segments: tuple[Segment, ...]) -> Batch:
        filler = self._tokenizer.eos_token_id
        if not self.args.packing:
            return collate_padded(segments, filler_id=filler)
        return collate_pack(segments, self.args.packing_length, filler_id=filler)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | float | None = None,
    ) -> Any:
        """
        The micro-step's share of the window's loss.

        Args:
            model (`nn.Module`):
                The wrapped model.
            inputs (`Batch`):
                A batch of [`~rollout_sft.step.collate.collate_pack`] or `collate_padded`.
            return_outputs (`bool`, *optional*, defaults to `False`):
                Whether to return the model's outputs as well.
            num_items_in_batch (`float`):
                Sum of the loss weights over the window and all ranks. Ranks average their gradients, so each
                multiplies by their number.

        Returns:
            `Tensor`: The scalar loss, or `(loss, outputs)`.
        """
        if num_items_in_batch is None:
            raise ValueError("num_items_in_batch is None; the loss is divided by the weight of the whole window.")
        inputs = dict(inputs)
        targets, weights, kept = inputs.pop("targets"), inputs.pop("weights"), inputs.pop("kept", None)
        if self._forward_names is not None:
            kept = inputs.get("logits_to_keep") if "logits_to_keep" not in self._forward_names else kept
            inputs = {name: value for name, value in inputs.items() if name in self._forward_names}
        outputs = model(**mark_packed(inputs, self.accelerator.unwrap_model(model)))
        logits = outputs.logits.flatten(0, 1)
        loss = weighted_loss(logits if kept is None else logits[kept], targets, weights)
        loss = carried_by_gradient(loss, self.args.world_size / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    # --- evaluation --------------------------------------------------------------------------------------------

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Generates, scores and reports; see `Trainer.evaluate`. Metrics are `{prefix}_rollout/f1` and so on."""
        self._metrics.training_ends()
        self._sync_rollouts(windows=0)
        self.callback_handler.eval_dataloader = dataloader
        totals, samples = Ratios(), 0
        with torch.random.fork_rng(devices=[]):  # a data loader draws from the generator that dropout uses
            batches = iter(dataloader)
            while True:
                scores, _ = together(partial(self._score_next, batches), share=lambda _: None)
                if scores is None:
                    break
                for counters in self.accelerator.gather_for_metrics(scores, use_gather_object=True):
                    totals.add(counters)
                    samples += 1
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        self.generation.sleep()
        if not samples:
            raise ValueError("the evaluation data set is empty, so there is nothing to report; check data.eval.")
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in totals.values().items()}
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=samples)

    def roll_out(self, samples: Sequence[Sample]) -> list[Rollout]:
        """
        Answers samples as evaluation does; every rank calls it at the same point.

        Args:
            samples (`Sequence[Sample]`):
                Samples with `id` and `prompt_ids`.

        Returns:
            `list[Rollout]`: one per sample.
        """
        requests = [
            RolloutRequest(prompt_ids=read_prompt(s), seed=derive_seed("eval", self.args.seed, read_id(s, i)))
            for i, s in enumerate(samples)
        ]
        self.generation.sync()
        return self.generation.evaluation.generate(requests)

    def _score_next(self, batches: Iterator[MicroBatch]) -> list[Counters] | None:
        """The next batch's scores; None when there is no batch left, which is so on every rank at once."""
        batch = next(batches, None)
        if batch is None:
            return None
        samples = batch.samples
        rollouts = self.roll_out(samples)
        return [self.target_builder.score(s, r) for s, r in zip(samples, rollouts, strict=True)]

    # --- log and checkpoint ------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the metrics of the windows since the last line to a training line; see `Trainer.log`."""
        if "loss" in logs:
            logs = {**logs, **self._metrics.take()}
        super().log(logs, start_time)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See `Trainer.train`; `resume_from_checkpoint=True` takes the last checkpoint whose save was finished."""
        together(lambda: reject_empty_data(self.train_dataset, self.args), share=lambda _: None)
        return super().train(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._metrics.training_ends()
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(*args, **kwargs)
        self.generation.weights.changed()

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.generation.weights.changed()
