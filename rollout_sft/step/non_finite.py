"""Keeps a step whose loss or gradient is not finite from the optimizer, on every rank.

The check adds no wait for the device. [`~rollout_sft.step.loss.share_of_window`] turns a loss that is not finite into a
gradient that is not finite, and the sum of gradients over the ranks carries it to all ranks. The Trainer computes the
norm of the gradient before the optimizer's step anyway; this module reads that norm. Only when it is not finite do the
ranks tell each other what they saw.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from packsched import Pack
from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.inputs.segment import Segment
from rollout_sft.ranks.distributed import together

logger = logging.getLogger(__name__)

SKIPS_IN_A_ROW = 10
"""`rollout_matching.on_non_finite: skip` ends the run after this many skipped steps in a row."""
_NAMED = 8


class NonFiniteError(ValueError):
    """Raised when a loss, a gradient or a weight is infinite or not a number."""


def first_non_finite(model: nn.Module) -> str | None:
    """
    Looks for a weight that is not finite; waits for the device once.

    Args:
        model (`nn.Module`):
            The model. Of sharded weights only this rank's part is checked.

    Returns:
        `str` or `None`: the name of the first parameter that holds an infinity or NaN.
    """
    weights = dict(model.named_parameters())
    if sum_is_finite(weights.values()):
        return None
    bad = [name for name, part in weights.items() if not _own(part).isfinite().all()]  # or the sum alone overflowed
    return bad[0].removeprefix("module.") if bad else None


def sum_is_finite(weights: Iterable[Tensor]) -> bool:
    """
    Returns whether the sum of weights is finite, and so every weight; waits for the device once.

    An infinity or NaN stays in a sum, which is ten times faster than a look at every value.

    Args:
        weights (`Iterable[Tensor]`):
            The weights. Of sharded weights only this rank's part is checked.
    """
    with torch.no_grad():
        parts = [part for part in map(_own, weights) if part.is_floating_point()]
        sums = [part.sum().to(parts[0].device, torch.float32) for part in parts]
        return not sums or bool(torch.stack(sums).sum().isfinite())


def _own(weight: Tensor) -> Tensor:
    """Returns this rank's part of a weight that may be sharded."""
    part: Tensor = getattr(weight, "_local_tensor", weight)  # FSDP2
    return getattr(part, "ds_tensor", part)  # ZeRO-3


class FiniteTrainer(Trainer):
    """Checks the norm of every gradient before the optimizer's step."""

    args: RolloutSFTConfig
    micro_step = 0
    """Number of the current micro-step in its window, from 1; set by the caller."""
    _in_a_row = 0
    _steps = _skipped = 0
    """Counts since the last line of the log."""
    _last_was_skipped = False

    def begin_window(self) -> None:
        """Forgets the losses of the previous window."""
        self.micro_step = 0
        self._forwards: list[tuple[int, Tensor, list[str]]] = []
        self._loss_before = self._tr_loss.clone()

    def note_loss(self, loss: Tensor, pack: Pack[Segment]) -> None:
        """Keeps the loss of one pack, on its device, for [`_get_grad_norm`]."""
        self._forwards.append((self.micro_step, loss, [segment.sample_id for segment in pack.segments]))

    def correct_losses(self, loss: Tensor, factor: float) -> Tensor:
        """
        Multiplies the losses of a window, which the log adds up, by a factor that is known only at its end.

        Args:
            loss (`Tensor`):
                The loss of the last micro-step, which the Trainer is about to add.
            factor (`float`):
                For 1 nothing is done.

        Returns:
            `Tensor`: the last micro-step's loss, corrected.
        """
        if factor != 1.0:
            losses = [loss for number, loss, _ in self._forwards if number < self.micro_step]
            self._tr_loss.copy_(self._loss_before + factor * sum(losses, torch.zeros_like(self._tr_loss)))
        return loss * factor if factor != 1.0 else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Checks the norm of the gradient; the Trainer calls it on every rank right before the optimizer's step."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        value = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        self._steps += 1
        self._last_was_skipped = not math.isfinite(value)
        if not self._last_was_skipped:
            self._in_a_row = 0
        elif self._is_overflow_of_scaler():
            logger.info("step %d: a gradient overflowed in float16; its scaler skips it.", self.state.global_step + 1)
        else:
            together(lambda: self._skip_or_raise(model, value), share=lambda _: None)
        return norm

    def _is_overflow_of_scaler(self) -> bool:
        """Returns whether a float16 scaler overflowed, which is normal: only a loss that is not finite is a fault."""
        has_scaler = self.accelerator.scaler is not None or (self.is_deepspeed_enabled and self.args.fp16)
        return has_scaler and all(math.isfinite(loss) for _, loss, _ in self._forwards)

    def _skip_or_raise(self, model: nn.Module, norm: float) -> None:
        """Skips the step on every rank, or raises on every rank."""
        self._in_a_row += 1
        _, reports = together(lambda: self._report(model), share=lambda report: report)
        found = "\n".join(f"rank {rank}, {line}" for rank, lines in enumerate(reports) for line in lines)
        text = (
            f"step {self.state.global_step + 1}: the norm of the gradient is {norm}, so the step is not done.\n{found}"
        )
        if self.args.on_non_finite == "raise":
            skip = ", or set rollout_matching.on_non_finite: skip to go on without such steps"
            raise NonFiniteError(
                f"{text}\nLook at these samples, or lower training.learning_rate"
                f"{'' if self.is_deepspeed_enabled else skip}."
            )
        if self._in_a_row >= SKIPS_IN_A_ROW:
            raise NonFiniteError(f"{text}\nIt is number {self._in_a_row} in a row, so the run is broken for good.")
        self._skipped += 1
        if self.is_world_process_zero():
            logger.warning("%s\nSkipped, number %d in a row.", text, self._in_a_row)
        # The optimizer's step does nothing until the next micro-step sets this flag again.
        self.accelerator.gradient_state._set_sync_gradients(False)
        self._tr_loss.copy_(self._loss_before)

    def _report(self, model: nn.Module) -> list[str]:
        """Describes what this rank saw, worst first: bad weights, bad losses, or only the samples of the window."""
        name = first_non_finite(model)
        if name is not None:
            return [f"before the step: {name} held values that are not finite, so the step before made them"]
        lines = [
            f"micro-step {number}: loss {float(loss)}, samples {_listed(ids)}"
            for number, loss, ids in self._forwards
            if not math.isfinite(loss)
        ]
        every = _listed([name for _, _, ids in self._forwards for name in ids])
        return lines or [f"every loss is finite, samples {every}"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Leaves skipped steps out of the mean loss, and counts them; see `Trainer.log`."""
        if "loss" in logs:
            if self.args.on_non_finite == "skip":
                logs = {**logs, "non_finite_steps": self._skipped}
                if self._skipped == self._steps:
                    del logs["loss"]
                else:
                    logs["loss"] *= self._steps / (self._steps - self._skipped)
                if self._last_was_skipped:
                    del logs["grad_norm"]
            self._steps = self._skipped = 0
        super().log(logs, start_time)


def _listed(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return ", ".join(repr(name) for name in ids[:_NAMED]) + more
