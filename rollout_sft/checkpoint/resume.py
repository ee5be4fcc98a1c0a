"""Resumes runs from a finished checkpoint, bit for bit."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import has_length

from rollout_sft.checkpoint.carry_buffer import carried, load_carry_buffer
from rollout_sft.checkpoint.changed_rates import put_back, remember
from rollout_sft.checkpoint.comparison import Comparison, compare
from rollout_sft.checkpoint.manifest import last_finished_checkpoint
from rollout_sft.checkpoint.response_lens import load_response_lens
from rollout_sft.checkpoint.saving import SavingTrainer
from rollout_sft.model.weights import compare_weights, has_adapter, load_weights, reading
from rollout_sft.ranks.distributed import entangled, together
from rollout_sft.step.schedule import MicroSchedule

logger = logging.getLogger(__name__)


class ResumableTrainer(SavingTrainer):
    """Resumes a [`SavingTrainer`] from its finished checkpoints, and from no others."""

    described: dict[str, Any]
    """The result of [`~rollout_sft.checkpoint.described_parts.describe_parts`], from before the trainer was made."""
    comparison: Comparison | None = None
    """A comparison that the next call of `train` need not repeat."""
    _changed: frozenset[str] = frozenset()
    """Settings that may differ from the checkpoint's, and do."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains as `Trainer.train` does; `True` resumes from the last finished checkpoint."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_finished_checkpoint(str(self.args.output_dir))
            if resume_from_checkpoint is None:
                raise ValueError(f"{self.args.output_dir} holds no finished checkpoint to resume from.")
        checkpoint = resume_from_checkpoint or None
        if self.comparison is None or self.comparison.source != checkpoint:
            self.comparison = compare(self.args, self.plain_model(), self.described, self.train_dataset, checkpoint)
        self.trained_with, self._changed = self.comparison.trained_with, self.comparison.changed
        self.comparison = None  # files and data may change before the trainer trains again
        return super().train(checkpoint, *args, **kwargs)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        checkpoint = kwargs.get("resume_from_checkpoint")
        together(partial(self._restore_schedule, checkpoint), share=lambda _: None)
        with entangled():
            output = super()._inner_training_loop(*args, **kwargs)
        if isinstance(self.schedule, MicroSchedule):
            _, left = together(lambda: [s.encoded_len for s in self.schedule.waiting], share=lambda lens: lens)
            lens = [length for rank in left for length in rank]
            self._report_left_over(lens, "were still in the carry buffer when training ended")
        return output

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, epochs: int, resume_from_checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """
        Keeps the evaluation before training in the log of a new run, so that its checkpoints hold it.

        Reads from the checkpoint's epoch how often a stream has started again, which the Trainer does not know.
        """
        before = [] if resume_from_checkpoint or self.state.global_step else self.state.log_history
        start: tuple[int, int] = super()._init_training_state(
            max_steps, steps_per_epoch, epochs, resume_from_checkpoint, trial
        )
        self.state.log_history = [*before, *self.state.log_history]
        if self._is_at_its_end() and self.is_world_process_zero():
            logger.warning(
                "the checkpoint is at step %d of %d: nothing is left to train. To go on raise training.max_steps (or "
                "num_train_epochs).",
                self.state.global_step,
                self.state.max_steps,
            )
        if resume_from_checkpoint is None or has_length(self.train_dataset) or self.args.ignore_data_skip:
            return start
        saved = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
        passes = max(0, math.ceil(saved.epoch or 0) - 1)
        # The Trainer takes one pass of a stream to be as long as the whole run.
        batches_of_a_pass = saved.max_steps * self.args.gradient_accumulation_steps
        return passes, round(((saved.epoch or 0) - passes) * batches_of_a_pass)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        # Only `eval_on_start` skips the scheduler; the start of a resumed run is in its log.
        if skip_scheduler and self.state.global_step:
            return {}
        metrics: dict[str, float] = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        return metrics

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The Trainer compares with `max_steps` only after a step.
        if self._is_at_its_end():
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _is_at_its_end(self) -> bool:
        return bool(self.state.global_step >= self.state.max_steps)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load = super()._load_from_checkpoint
        self._read(lambda: self._load_weights(resume_from_checkpoint, lambda: load(resume_from_checkpoint, model)))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        fresh = remember(self.optimizer)
        self._read(lambda: super(ResumableTrainer, self)._load_optimizer_and_scheduler(checkpoint))
        put_back(self._changed, fresh, self.optimizer, self.lr_scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        self._read(lambda: super(ResumableTrainer, self)._load_rng_state(checkpoint))

    def _load_best_model(self) -> None:
        load = super()._load_best_model
        self._read(lambda: self._load_weights(str(self.state.best_model_checkpoint), load))

    def _load_weights(self, checkpoint: str, load: Callable[[], None]) -> None:
        """
        Loads the weights of a checkpoint, and compares them with what was saved.

        `load` is the Trainer's way; it serves sharded weights, which were saved under the names of the living model,
        and adapters. It would skip every other tensor whose name it does not find.
        """
        model = self.plain_model()
        with reading(checkpoint):
            if self.is_fsdp_enabled or self.is_deepspeed_enabled or has_adapter(model):
                load()
            else:
                load_weights(model, checkpoint)
        compare_weights(model, checkpoint)

    def _read(self, read: Callable[[], None]) -> None:
        """Reads a part of a checkpoint on every rank; sharded weights are read in collectives."""

        def work() -> None:
            with entangled(self.writes_in_collectives()):
                read()

        together(work, share=lambda _: None)

    def _restore_schedule(self, checkpoint: str | None) -> None:
        """Restores the segments and lengths that the checkpoint holds, and forgets those of an earlier run."""
        self.response_lens = load_response_lens(checkpoint) if checkpoint else []
        if not isinstance(self.schedule, MicroSchedule):
            lens = carried(checkpoint) if checkpoint else []
            self._report_left_over(lens, "wait in the checkpoint's carry buffers, which only scope micro has,")
            return
        self.schedule.clear()
        if checkpoint:
            rank, ranks = self.args.process_index, self.args.world_size
            load_carry_buffer(self.schedule.buffer, checkpoint, rank=rank, ranks=ranks)

    def _report_left_over(self, encoded_lens: Sequence[int], where: str) -> None:
        """Warns that waiting segments are not trained (`packing_drop_last`), with their numbers."""
        if encoded_lens and self.is_world_process_zero():
            logger.warning(
                "%d segments (%d tokens) %s and are not trained (training.packing_drop_last: true). Scope window "
                "leaves none.",
                len(encoded_lens),
                sum(encoded_lens),
                where,
            )
