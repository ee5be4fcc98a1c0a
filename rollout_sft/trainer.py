"""Defines `RolloutSFTTrainer`, which feeds packs to Hugging Face's training loop.

    get_batch_samples    once per optimizer step: GA raw micro-batches -> rollouts -> targets -> segments -> packs
    training_step        runs one micro-step: its pack, or none, or several
    compute_loss         one pack: sum of weight * cross-entropy, divided by the whole window's weight
    evaluation_loop      scores rollouts, in evaluation.py; packs nothing and does not change the training state
    log                  adds the window's metrics to the line of the optimizer step

The training loop is not forked. The trainer returns exactly as many batches as the Trainer asked for, because the
Trainer finds its synchronising step by counting them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, ProcessorMixin, ProgressCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from rollout_sft.checkpoint.described_parts import describe_parts
from rollout_sft.checkpoint.resume import ResumableTrainer
from rollout_sft.checks import unsupported
from rollout_sft.checks.equivalence import validate_window
from rollout_sft.checks.leak_probe import IsolationReport, probe_before_training
from rollout_sft.checks.length_probe import probe_lengths_before_training, probe_window
from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.config.releases import check_releases
from rollout_sft.data.samples import MicroBatch, collate_raw
from rollout_sft.evaluation import EvaluatingTrainer
from rollout_sft.findings import find_in_model, report_findings
from rollout_sft.model.attention import choose_attention, reject_chunks_of_row
from rollout_sft.model.forward import Inputs, prepare_forward
from rollout_sft.model.inputs import adapter_for, look_for_unused_parameters, split_processor
from rollout_sft.model.quantized import prepare_quantized
from rollout_sft.model.recurrent import RecurrentLayers
from rollout_sft.ranks.distributed import is_sharded, together
from rollout_sft.reporting.callbacks import keep_tensorboard_in, make_callbacks
from rollout_sft.reporting.log_line import LogLineCallback
from rollout_sft.reporting.metrics import StepMetrics
from rollout_sft.reporting.window_fill import FillEstimate
from rollout_sft.rollouts.base import RolloutBackend, StreamingBackend
from rollout_sft.rollouts.end_tokens import end_tokens_of
from rollout_sft.rollouts.endings import make_endings
from rollout_sft.rollouts.lifecycle import Generation
from rollout_sft.step.build import WindowBuilder
from rollout_sft.step.collate import PackedBatch, collate_pack, collate_padded, split_inputs
from rollout_sft.step.denominator import Denominator, scale_gradients
from rollout_sft.step.loss import share_of_window, weighted_loss
from rollout_sft.step.media import MediaLoader
from rollout_sft.step.micro_steps import MICRO_STEP, MicroStep, arrange_window, run_micro_step
from rollout_sft.step.non_finite import FiniteTrainer
from rollout_sft.step.open_window import BuiltWindow
from rollout_sft.step.pack_times import PackTimes
from rollout_sft.step.schedule import make_schedule
from rollout_sft.step.wave_cuts import wave_cuts
from rollout_sft.step.waves import LazyWindow
from rollout_sft.targets.base import TargetBuilder
from rollout_sft.targets.loading import make_target_builder


class RolloutSFTTrainer(EvaluatingTrainer, FiniteTrainer, ResumableTrainer):
    """
    Trains a causal language model on its own rollouts, packed per micro-batch or per accumulation window.

    Args:
        model (`PreTrainedModel`):
            A causal language model whose forward takes `position_ids`.
        args (`RolloutSFTConfig`):
            All settings.
        processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`):
            The tokenizer, which needs an end token, or a processor that holds tokenizer and image processor.
        image_processor (`BaseImageProcessor`, *optional*):
            Makes the pixels for an image model; the processor's own when not given.
        target_builder (`TargetBuilder`, *optional*):
            Makes segments from samples and rollouts; the one that `args.target_builder` names when not given.
        rollout_backend (`RolloutBackend`, *optional*):
            Generates for training and evaluation; the one that `args.rollout_backend` names when not given.
        kwargs:
            As in `Trainer`: `train_dataset`, `eval_dataset`, `callbacks`, `optimizers`, ... but no `data_collator`,
            `compute_loss_func`, `compute_metrics` or `preprocess_logits_for_metrics`.

    Attributes:
        recurrent ([`~rollout_sft.model.recurrent.RecurrentLayers`]):
            The layers that get each segment of a pack alone while training runs; none in most models.
        last_window (`list[list[int]]`):
            For each pack of the last window of this rank, the lengths of its segments.
        attention (`str`, *optional*):
            The attention that packs are trained with.
        end_tokens ([`~rollout_sft.rollouts.end_tokens.EndTokens`]):
            The tokens that end a rollout, and the one that is trained as the end.

    Raises:
        `ValueError`: an argument or the model is one of those that [`~rollout_sft.checks.unsupported`] refuses.
    """

    loss_is_scaled_for_ga = True
    args: RolloutSFTConfig

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: RolloutSFTConfig,
        *,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin,
        image_processor: Any = None,
        target_builder: TargetBuilder | None = None,
        rollout_backend: RolloutBackend | None = None,
        **kwargs: Any,
    ):
        check_releases(warn=getattr(args, "should_log", True))
        tokenizer, image_processor = split_processor(processing_class, image_processor)
        unsupported.reject_wrong_types(model, args, tokenizer)
        unsupported.reject_hooks(kwargs)
        prepare_quantized(model)
        look_for_unused_parameters(model, args)
        self.target_builder = target_builder or make_target_builder(tokenizer, args)
        self.described = describe_parts(
            model,
            tokenizer=tokenizer,
            image_processor=image_processor,
            target_builder=self.target_builder,
            optimizers=kwargs.get("optimizer_cls_and_kwargs") or kwargs.get("optimizers"),
        )
        if not kwargs.get("optimizer_cls_and_kwargs") and not any(kwargs.get("optimizers") or ()):
            unsupported.check_optimizer(model, args)
        if (kwargs.get("optimizers") or (None, None))[1] is None:
            unsupported.check_scheduler(args)
        with unsupported.naming_reports(args):
            super().__init__(
                model=model, args=args, processing_class=tokenizer, **{**kwargs, "data_collator": collate_raw}
            )
        plain = self.accelerator.unwrap_model(self.model)
        self.image_processor = image_processor
        self.inputs = adapter_for(plain, tokenizer, image_processor, args)
        unsupported.check_model(plain, args, sharded=self.is_fsdp_enabled or self.is_deepspeed_enabled)
        report_findings(find_in_model(plain, tokenizer, image_processor, args))
        self.attention: str | None = None
        if args.packing:
            autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
            reject_chunks_of_row(plain, args.packing_length)
            self.attention = choose_attention(plain, args.attention, device=args.device, autocast=autocast)
        self.recurrent = RecurrentLayers(plain, device=args.device, one_call=is_deepspeed_zero3_enabled())
        self._to_probe = args.packing and args.check_isolation
        self._to_probe_window = self._to_probe
        self._to_validate = args.validate_schedule != "off"
        self._filler_id: int = tokenizer.eos_token_id
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled or is_sharded(plain)
        self.pack_times = PackTimes(args.device, active=args.post_rollout_pack_scope == "global" and not sharded)
        self.schedule = make_schedule(args, plain.config, self.inputs.seen_size, self.pack_times)
        self.fill_estimate = FillEstimate(args)
        vocab_size = plain.config.get_text_config().vocab_size
        self.end_tokens = end_tokens_of(plain, tokenizer, args, vocab_size=vocab_size)
        self.generation = Generation(
            args,
            tokenizer,
            self.end_tokens.ids,
            lambda: self.accelerator.unwrap_model(self.model),
            rollout_backend,
            inputs=self.inputs,
            image_processor=image_processor,
            endings=make_endings(args.end_rollouts, self.target_builder),
        )
        self.window_builder = WindowBuilder(
            args,
            schedule=self.schedule,
            target_builder=self.target_builder,
            backend=self.generation.train,
            limits=self.generation.train_limits,
            collate=partial(
                collate_pack if args.packing else collate_padded, filler_id=self._filler_id, adapter=self.inputs
            ),
            rank=args.process_index,
            adapter=self.inputs,
        )
        unsupported.check_waves_run_here(args, self.generation.train, deepspeed=self.is_deepspeed_enabled)
        self.denominator = Denominator()
        self.response_lens = []
        self.media = MediaLoader(self.inputs)
        self.metrics = StepMetrics()
        self.last_window: list[list[int]] = []
        self.pop_callback(ProgressCallback)
        self.pop_callback(PrinterCallback)
        self.add_callback(LogLineCallback)
        self.add_callback(self.generation)
        for callback in make_callbacks(args.callbacks, self):
            self.add_callback(callback)
        keep_tensorboard_in(args.output_dir, self.callback_handler.callbacks)

    def probe(self) -> IsolationReport | None:
        """
        Runs the leak probe now, before an evaluation. The first step repeats it where several ranks wrap the model.

        Returns:
            [`~rollout_sft.checks.leak_probe.IsolationReport`]: The measurements; None where the probe is off, or where
            the model is sharded, so that the first step runs it.
        """
        if not self._to_probe or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return None
        with self.recurrent.active():
            report = self._probe()
        self._to_probe = self.args.world_size > 1
        return report

    def _probe(self) -> IsolationReport:
        report = probe_before_training(self, self.inputs)
        probe_lengths_before_training(self, self.inputs, self.args.packing_length)
        return report

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains as `Trainer.train` does; `resume_from_checkpoint=True` takes the last finished checkpoint."""
        together(lambda: unsupported.reject_empty_data(self.train_dataset, self.args), share=lambda _: None)
        try:
            with self.recurrent.active(), self.metrics.timed():
                return super().train(*args, **kwargs)
        finally:
            self.window_builder.close()

    def get_batch_samples(  # type: ignore[override]  # the denominator of the loss need not be an integer
        self, epoch_iterator: Iterator[MicroBatch], num_batches: int, device: torch.device
    ) -> tuple[list[Inputs] | LazyWindow, float | None]:
        """
        Builds one window, or its first wave; returns exactly `num_batches` micro-steps, and what losses are divided by:
        the sum of the loss weights over all ranks, or a power of two where it is not known yet.

        Returns no micro-steps when no rank has data left.
        """
        self.metrics.window_begins()
        if self._to_probe:
            self._probe()
            self._to_probe = False
        if self.args.reference_fraction < 1:
            self.generation.sync()
        self.begin_window()
        self.denominator.begin()
        waves = self._build_waves(epoch_iterator, num_batches, device)
        first = next(waves, None)
        if first is None:
            return [], None
        window = LazyWindow(num_batches, chain([first], waves))
        return (list(window) if self.denominator.is_settled else window), self.denominator.used

    def _build_waves(
        self, epoch_iterator: Iterator[MicroBatch], num_batches: int, device: torch.device
    ) -> Iterator[list[MicroStep]]:
        """Yields the micro-steps of each wave that trains something; nothing when no rank has data left."""
        done = self.state.global_step
        streams = isinstance(self.generation.train, StreamingBackend) and not self._to_validate and num_batches > 1
        cuts = wave_cuts(self.response_lens, self.args.rollout_waves) if streams else ()
        build: Callable[[], BuiltWindow]
        build = partial(self.window_builder.build, epoch_iterator, num_batches, done, cuts)
        while True:
            window, reports = together(build, share=lambda window: window.report)
            if not any(report.raw_micro_batches for report in reports):
                together(lambda: unsupported.reject_empty_stream(done), share=lambda _: None)
                return
            if window.is_last:
                break
            batches = self.window_builder.train_early(window, min(report.packs for report in reports))
            if batches:
                self.denominator.expect(sum(report.weight_sum for report in reports))
                self._probe_window(batches)
                yield self._begin_wave([MicroStep((batch.to(device),)) for batch in batches])
            build = self.window_builder.build_next
        weight_sum = sum(report.weight_sum for report in reports)
        if weight_sum <= 0:
            together(
                lambda: unsupported.reject_unsupervised_window(weight_sum, len(reports), done), share=lambda _: None
            )
        if not done and self.is_world_process_zero():
            unsupported.warn_about_missing_end(window.due, self.end_tokens.trained)
        self.denominator.settle(weight_sum)
        self.last_window = window.pack_lens
        self.response_lens = [length for report in reports for length in report.response_lens]
        self.fill_estimate.add([length for lens in self.last_window for length in lens])
        self.metrics.add(reports, num_batches)
        if self._to_validate:
            differences = validate_window(
                self,
                window,
                weight_sum=weight_sum,
                device=device,
                filler_id=self._filler_id,
                adapter=self.inputs,
            )
            self.metrics.add_values(differences)
            self._to_validate = self.args.validate_schedule == "every_window"
        self._probe_window([*window.batches, window.dummy])
        self.generation.sleep()
        most = max(report.packs for report in reports) - len(window.early)
        yield self._begin_wave(arrange_window(window, most=most, config=self.args, device=device))

    def _probe_window(self, batches: list[PackedBatch]) -> None:
        """Probes the first window that has a pack of different lengths."""
        if self._to_probe_window and probe_window(self, batches, self.inputs) is not None:
            self._to_probe_window = False

    def _begin_wave(self, micro_steps: list[MicroStep]) -> list[MicroStep]:
        """Begins to train what was just built."""
        self.metrics.training_begins()
        self.media.begin([batch for micro_step in micro_steps for batch in micro_step.batches])
        return micro_steps

    def training_step(
        self, model: nn.Module, inputs: Inputs, num_items_in_batch: Tensor | float | None = None
    ) -> Tensor:
        """Runs one micro-step with one pack, none, or several; see [`~rollout_sft.step.micro_steps`]."""
        self.micro_step += 1
        step = super().training_step

        def train_batch(batch: PackedBatch) -> Tensor:
            inputs = self.media.take(batch).to(self.args.device).as_inputs()
            with self.pack_times.timed(batch.pack, synchronises=self.accelerator.sync_gradients):
                loss = step(model, inputs, num_items_in_batch)  # type: ignore[arg-type]
            self.note_loss(loss, batch.pack)
            return loss

        loss = run_micro_step(self, model, inputs[MICRO_STEP], train_batch)
        if self.accelerator.sync_gradients:
            scale_gradients(model, self.denominator.correction)
            loss = self.correct_losses(loss, self.denominator.correction)
        if self.accelerator.sync_gradients and self.state.global_step == 0:
            unsupported.reject_unreduced(model)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Inputs,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | float | None = None,
    ) -> Any:
        """
        Computes one pack's share of the window's loss.

        `inputs` come from [`~rollout_sft.step.collate.PackedBatch.as_inputs`]; `num_items_in_batch` is the sum of the
        loss weights over the window and all ranks. Ranks average their gradients, so each multiplies by their number.
        """
        if num_items_in_batch is None:
            raise ValueError("num_items_in_batch is None; the loss is divided by the weight of the whole window.")
        inputs, supervised, targets, weights = split_inputs(inputs)
        inputs = prepare_forward(model, inputs)
        outputs = model(**inputs)
        logits = outputs.logits.flatten(0, 1)
        loss = weighted_loss(logits if "logits_to_keep" in inputs else logits[supervised], targets, weights)
        loss = share_of_window(loss, window_weight=num_items_in_batch, ranks=self.args.world_size)
        return (loss, outputs) if return_outputs else loss

    def floating_point_ops(self, inputs: Inputs) -> int:
        """Estimates what `Trainer.floating_point_ops` does; counts the parameters once, not in every micro-step."""
        return self._ops_of_one_token * inputs["input_ids"].numel()

    @cached_property
    def _ops_of_one_token(self) -> int:
        return super().floating_point_ops({"input_ids": torch.zeros(1)})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the metrics of the windows since the last line to a training line; see `Trainer.log`."""
        super().log({**logs, **self.metrics.take()} if "loss" in logs else logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.metrics.training_ends()
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(*args, **kwargs)
        self.generation.weights.changed()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:  # DeepSpeed has read the weights by now, without `_load_from_checkpoint`
            self.generation.weights.changed()

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.generation.weights.changed()
