"""Saves checkpoints that are complete on every rank; a save that failed on one rank does not count.

The Trainer saves in the middle of collectives: a rank that raised alone between two of them would leave the others
in the next one. Therefore an error of what a rank writes alone is held back, and the ranks share it at the end of the
save. Collectives that write (FSDP, DeepSpeed) run inside [`entangled`].
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.serialization import get_crc32_options, set_crc32_options
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rollout_sft.checkpoint.atomic_files import write_atomically
from rollout_sft.checkpoint.carry_buffer import save_carry_buffer
from rollout_sft.checkpoint.manifest import last_finished_checkpoint, mark_finished, mark_unfinished, rotate
from rollout_sft.checkpoint.response_lens import save_response_lens
from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.model.weights import DIGESTS, digests, hides_weights
from rollout_sft.ranks.distributed import entangled, is_sharded, together
from rollout_sft.step.non_finite import NonFiniteError, first_non_finite, sum_is_finite
from rollout_sft.step.schedule import MicroSchedule
from rollout_sft.step.scheduled_window import Schedule


class SavingTrainer(Trainer):
    """
    Adds the schedule's waiting segments to checkpoints, and marks a checkpoint when every rank has written its part.

    Attributes:
        schedule ([`~rollout_sft.step.scheduled_window.Schedule`]):
            The schedule, which may carry segments from one window to the next.
        response_lens (`list[int]`):
            The lengths of the last window's responses, those of all ranks, where the next window has waves.
        trained_with (`dict`):
            The settings that every checkpoint holds; see [`~rollout_sft.checkpoint.settings.trained_with`].
        image_processor (`BaseImageProcessor`, *optional*):
            Saved beside the weights and the tokenizer.
    """

    args: RolloutSFTConfig
    schedule: Schedule
    response_lens: list[int]
    trained_with: dict[str, Any]
    image_processor: Any = None
    _failures: list[Exception] | None = None
    """The errors of this rank while a checkpoint is being saved; None otherwise."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Saves a checkpoint; removes older ones only after every rank has finished writing this one."""
        run_folder = self._get_output_dir(trial=trial)
        folder = Path(run_folder) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        limit = self.args.save_total_limit

        def begin() -> None:
            self._reject_non_finite_weights(model)
            if self.args.should_save:
                mark_unfinished(folder)

        def write() -> None:
            self._failures = []
            self.args.save_total_limit = None
            try:
                self._hold(lambda: self._save_carried(folder))
                with entangled(self.writes_in_collectives()):
                    super(SavingTrainer, self)._save_checkpoint(model, trial)
                if self._failures:
                    raise self._failures[0]
            finally:
                self._failures = None
                self.args.save_total_limit = limit

        def finish() -> None:
            if not self.args.should_save:
                return
            mark_finished(folder, self.trained_with)
            rotate(run_folder, limit, step=self.state.global_step, best_step=self.state.best_global_step)

        for part in (begin, write, finish):
            together(part, share=lambda _: None)

    def _reject_non_finite_weights(self, model: nn.Module) -> None:
        """Refuses to save weights that are not finite, which would replace the last good checkpoint."""
        # Frozen weights are what they were at the start.
        trained = (weight for weight in model.parameters() if weight.requires_grad)
        name = None if sum_is_finite(trained) else first_non_finite(model)
        if name is not None:
            last = last_finished_checkpoint(self._get_output_dir(trial=None))
            raise NonFiniteError(
                f"step {self.state.global_step}: {name} holds values that are not finite after the optimizer's step, "
                "though loss and gradient were finite, so the checkpoint is not written; the last finished one is "
                f"{last}. Lower training.learning_rate."
            )

    def _hold(self, write: Callable[[], None], *, local: bool = True) -> None:
        """Writes something; if that fails during a save, holds the error until the end of the save."""
        if self._failures is None or not local:
            write()
        elif not self._failures:
            try:
                write()
            except Exception as error:
                self._failures.append(error)

    def writes_in_collectives(self) -> bool:
        """Returns whether weights or optimizer are sharded, and so gathered while they are written."""
        return self.args.world_size > 1 and (is_sharded(self.model_wrapped) or self.is_deepspeed_enabled)

    def _save_carried(self, folder: Path) -> None:
        if isinstance(self.schedule, MicroSchedule):
            ranks = self.args.world_size
            save_carry_buffer(self.schedule.buffer, folder, rank=self.args.process_index, ranks=ranks)
        if self.args.rollout_waves > 1 and self.args.should_save:
            save_response_lens(self.response_lens, folder)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # A given state dict is already gathered; without one, sharded weights are gathered while they are written.
        gathered = state_dict is not None or not self.writes_in_collectives()
        self._hold(lambda: self._save_weights(str(output_dir or self.args.output_dir), state_dict), local=gathered)
        if self.image_processor is not None and self.args.should_save:
            self._hold(lambda: self.image_processor.save_pretrained(output_dir or self.args.output_dir))

    def _save_weights(self, folder: str, state_dict: Any) -> None:
        """Saves the weights with their digests, by which a resume, or the next stage, knows that they came back."""
        model = self.plain_model()
        found = None
        if not hides_weights(model) and (self.args.should_save or self.writes_in_collectives()):
            found = digests(model, state_dict)  # before a save empties the state dict
        super()._save(folder, state_dict)
        if found is not None and self.args.should_save:
            write_atomically(Path(folder) / DIGESTS, json.dumps(found, indent=1) + "\n")

    def plain_model(self) -> nn.Module:
        """Returns the model without the wrappers of DDP and torch.compile, but with its adapter."""
        plain: nn.Module = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return plain

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        save = super()._save_optimizer_and_scheduler

        def write() -> None:
            with _without_crc():
                save(output_dir)

        self._hold(write, local=not self.writes_in_collectives())

    def _save_scaler(self, output_dir: str) -> None:
        save = super()._save_scaler
        self._hold(lambda: save(output_dir))

    def _save_rng_state(self, output_dir: str) -> None:
        save = super()._save_rng_state
        self._hold(lambda: save(output_dir))


@contextmanager
def _without_crc() -> Iterator[None]:
    """
    Leaves the CRC-32 of every tensor out of the archives of `torch.save`.

    `torch.load` never reads it, and computing it takes a third of the time of writing. The manifest's checksum of the
    whole file finds the same damage in half of that time (docs/decisions/0012).
    """
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)
