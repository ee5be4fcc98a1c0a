"""Saves that are complete on every rank or do not count, and runs that go on from them bit for bit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from rollout_sft.checkpoint.carry_buffer import carried, load_carry_buffer, save_carry_buffer
from rollout_sft.checkpoint.finished import last_finished_checkpoint, mark_finished, mark_unfinished, require_finished
from rollout_sft.ranks.distributed import entangled, is_sharded, together
from rollout_sft.step.schedule import MicroSchedule, Schedule

logger = logging.getLogger(__name__)


class ResumableTrainer(Trainer):
    """
    A `Trainer` whose checkpoints hold what its schedule carries, and are marked when every rank has written its part.

    Attributes:
        schedule ([`~rollout_sft.step.schedule.Schedule`]):
            What may carry segments from one window to the next.
    """

    schedule: Schedule

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """See `Trainer.train`; `True` resumes from the last checkpoint whose save was finished."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_finished_checkpoint(str(self.args.output_dir))
            if resume_from_checkpoint is None:
                raise ValueError(f"{self.args.output_dir} holds no finished checkpoint to resume from.")
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Older checkpoints are removed only after every rank has finished writing this one."""
        run_folder = self._get_output_dir(trial=trial)
        folder = Path(run_folder) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        save_rest = super()._save_checkpoint
        limit = self.args.save_total_limit

        def begin() -> None:
            if self.args.should_save:
                mark_unfinished(folder)

        def write() -> None:
            if isinstance(self.schedule, MicroSchedule):
                ranks = self.args.world_size
                save_carry_buffer(self.schedule.buffer, folder, rank=self.args.process_index, ranks=ranks)
            self.args.save_total_limit = None
            try:
                with entangled(is_sharded(self.model_wrapped) or self.is_deepspeed_enabled):
                    save_rest(model, trial)
            finally:
                self.args.save_total_limit = limit

        def finish() -> None:
            if not self.args.should_save:
                return
            mark_finished(folder)
            rotate_checkpoints(
                output_dir=run_folder,
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

        for part in (begin, write, finish):
            together(part, share=lambda _: None)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        checkpoint = kwargs.get("resume_from_checkpoint")
        together(partial(self._restore_schedule, checkpoint), share=lambda _: None)
        output = super()._inner_training_loop(*args, **kwargs)
        if isinstance(self.schedule, MicroSchedule):
            _, left = together(lambda: [s.encoded_len for s in self.schedule.waiting], share=lambda lens: lens)
            lens = [length for rank in left for length in rank]
            self._report_left_over(lens, "were still in the carry buffer when training ended")
        return output

    def _restore_schedule(self, checkpoint: str | None) -> None:
        """What waited when the checkpoint was saved; nothing of an earlier run of this trainer."""
        if checkpoint:
            require_finished(checkpoint)
        if not isinstance(self.schedule, MicroSchedule):
            lens = carried(checkpoint) if checkpoint else []
            self._report_left_over(lens, "wait in the checkpoint's carry buffers, which only scope micro has,")
            return
        self.schedule.clear()
        if checkpoint:
            rank, ranks = self.args.process_index, self.args.world_size
            load_carry_buffer(self.schedule.buffer, checkpoint, rank=rank, ranks=ranks)

    def _report_left_over(self, encoded_lens: Sequence[int], where: str) -> None:
        """Segments that wait are not trained (`packing_drop_last`); say so, with numbers."""
        if encoded_lens and self.is_world_process_zero():
            logger.warning(
                "%d segments (%d tokens) %s and are not trained (training.packing_drop_last: true). Scope window "
                "leaves none.",
                len(encoded_lens),
                sum(encoded_lens),
                where,
            )
