"""Runs that go on from a finished checkpoint bit for bit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rollout_sft.checkpoint.carry_buffer import carried, load_carry_buffer
from rollout_sft.checkpoint.finished import last_finished_checkpoint, require_finished
from rollout_sft.checkpoint.saving import SavingTrainer
from rollout_sft.ranks.distributed import entangled, together
from rollout_sft.step.schedule import MicroSchedule

logger = logging.getLogger(__name__)


class ResumableTrainer(SavingTrainer):
    """A [`SavingTrainer`] that starts from its finished checkpoints, and from nothing else."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """See `Trainer.train`; `True` resumes from the last checkpoint whose save was finished."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_finished_checkpoint(str(self.args.output_dir))
            if resume_from_checkpoint is None:
                raise ValueError(f"{self.args.output_dir} holds no finished checkpoint to resume from.")
        return super().train(resume_from_checkpoint, *args, **kwargs)

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

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._read(lambda: super(ResumableTrainer, self)._load_from_checkpoint(*args, **kwargs))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self._read(lambda: super(ResumableTrainer, self)._load_optimizer_and_scheduler(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        self._read(lambda: super(ResumableTrainer, self)._load_rng_state(checkpoint))

    def _load_best_model(self) -> None:
        self._read(super()._load_best_model)

    def _read(self, read: Callable[[], None]) -> None:
        """Reads a part of a checkpoint on every rank; sharded weights are read in collectives."""

        def work() -> None:
            with entangled(self._is_sharded()):
                read()

        together(work, share=lambda _: None)

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
