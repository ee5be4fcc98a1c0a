"""Lays a window's packs into the micro-steps that the Trainer counts, and runs a micro-step.

The Trainer asks for GA batches and counts them to find its synchronising step. So it always gets GA micro-steps, and
each runs one pack, none, or several. Every rank runs the same number of forwards, since a forward may be a collective:

    GA 4, at most 2 packs on a rank     idle_micro_steps: dummy   | pack | pack | dummy | dummy |
                                        idle_micro_steps: skip    |      |      | pack  | pack  |
    GA 2, at most 4 packs on a rank     on_infeasible: extra_steps               | pack  | pack pack pack |

An epoch's last window may have fewer micro-steps than GA; it may still have up to GA packs, for every setting of
`on_infeasible`.

A rank with fewer packs than another runs zero-weight dummies instead. Every rank skips the same micro-steps and never
the last one, which synchronises. So no rank waits for another and every gradient is reduced.
The longest pack comes first: if memory does not suffice, the first forward shows it, and ranks that meet in every
forward run their long packs at the same time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import Trainer

from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.model.forward import Inputs
from rollout_sft.step.collate import PackedBatch
from rollout_sft.step.open_window import BuiltWindow

logger = logging.getLogger(__name__)

MICRO_STEP = "micro_step"
"""Key of the [`MicroStep`] in the plain dict that the Trainer gets."""


@dataclass(frozen=True)
class MicroStep:
    """
    Holds what runs in one of the micro-steps that the Trainer counts.

    Args:
        batches (`tuple[PackedBatch, ...]`):
            One per forward, in order; empty when every rank skips this micro-step.
    """

    batches: tuple[PackedBatch, ...]

    def as_inputs(self) -> Inputs:
        """Returns the plain dict for the Trainer: the micro-step, and the tensors whose tokens the Trainer counts."""
        if len(self.batches) == 1:
            counted = {n: v for n, v in self.batches[0].forward.items() if n in ("input_ids", "attention_mask")}
        else:
            rows = [batch.forward["input_ids"].flatten() for batch in self.batches]
            counted = {"input_ids": torch.cat(rows)[None] if rows else torch.empty((1, 0), dtype=torch.int64)}
        return {**counted, MICRO_STEP: self}


def arrange_window(
    window: BuiltWindow, *, most: int, config: RolloutSFTConfig, device: torch.device
) -> list[MicroStep]:
    """
    Copies a rank's packs to the device and lays them into its micro-steps.

    Args:
        window ([`~rollout_sft.step.open_window.BuiltWindow`]):
            The rank's window.
        most (`int`):
            The largest number of packs on any rank.
        config (`RolloutSFTConfig`):
            Says what idle micro-steps run.
        device (`torch.device`):
            Where the packs are trained.

    Returns:
        `list[MicroStep]`: as many micro-steps as the Trainer counts.
    """
    micro_steps = window.micro_steps
    if most > max(micro_steps, config.gradient_accumulation_steps):
        logger.warning(
            "this window takes %d packs on the fullest rank, %d more than its micro-steps, so its last micro-step "
            "runs %d of them. Lower per_device_train_batch_size, or raise gradient_accumulation_steps or "
            "global_max_length.",
            most,
            most - micro_steps,
            most - micro_steps + 1,
        )
    filled = [batch.to(device) for batch in window.batches if batch.pack.segments]
    skip_idle = config.idle_micro_steps == "skip"
    return arrange(filled, micro_steps, most=most, skip_idle=skip_idle, dummy=window.dummy.to(device))


def arrange(
    batches: Sequence[PackedBatch], micro_steps: int, *, most: int, skip_idle: bool, dummy: PackedBatch
) -> list[MicroStep]:
    """
    Lays a rank's packs into its micro-steps.

    Args:
        batches (`Sequence[PackedBatch]`):
            The packs that hold segments.
        micro_steps (`int`):
            How many micro-steps the Trainer asked for.
        most (`int`):
            The largest number of packs on any rank; every rank passes the same number.
        skip_idle (`bool`):
            Whether a micro-step that is idle on every rank runs nothing.
        dummy (`PackedBatch`):
            The zero-weight batch of an idle forward.

    Returns:
        `list[MicroStep]`: exactly `micro_steps` micro-steps.
    """
    assert len(batches) <= most, (len(batches), most)
    forwards = max(most, 1 if skip_idle else micro_steps)
    runs = sorted(batches, key=lambda batch: -batch.tokens) + [dummy] * (forwards - len(batches))
    idle = max(0, micro_steps - forwards)
    single = micro_steps - idle - 1
    return [
        *(MicroStep(()) for _ in range(idle)),
        *(MicroStep((batch,)) for batch in runs[:single]),
        MicroStep(tuple(runs[single:])),
    ]


def run_micro_step(
    trainer: Trainer, model: nn.Module, micro_step: MicroStep, train_batch: Callable[[PackedBatch], Tensor]
) -> Tensor:
    """
    Runs the forwards and backwards of one micro-step.

    Args:
        trainer (`Trainer`):
            The trainer whose accelerator synchronises the gradients.
        model (`nn.Module`):
            The wrapped model.
        micro_step ([`MicroStep`]):
            A micro-step that [`arrange`] made.
        train_batch (`Callable[[PackedBatch], Tensor]`):
            Runs forward and backward of one pack; returns its loss without a graph.

    Returns:
        `Tensor`: the sum of the losses.
    """
    loss = torch.zeros((), device=trainer.args.device)
    if not micro_step.batches:
        return loss
    accelerator = trainer.accelerator
    synchronises = accelerator.sync_gradients
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    for batch in micro_step.batches[:-1]:
        # The last pack synchronises all gradients. DeepSpeed steps its optimizer when this flag is set.
        accelerator.gradient_state._set_sync_gradients(False)
        try:
            with nullcontext() if deepspeed else accelerator.no_sync(model):
                loss = loss + train_batch(batch)
        finally:
            accelerator.gradient_state._set_sync_gradients(synchronises)
    return loss + train_batch(micro_step.batches[-1])
