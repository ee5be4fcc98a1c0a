"""What runs in each micro-step of a window: one pack, nothing, or in the last one several.

The Trainer asks for GA batches and counts them to find its synchronising step, so it always gets GA, one *slot* each.
How many forwards lie in them is the same on every rank, since a forward may be a collective:

    GA 4, at most 2 packs on a rank     idle_micro_steps: dummy   | pack | pack | dummy | dummy |
                                        idle_micro_steps: skip    |      |      | pack  | pack  |
    GA 2, at most 4 packs on a rank     on_infeasible: extra_steps               | pack  | pack pack pack |

An epoch's last window may have fewer micro-steps than GA; it may have up to GA packs whatever `on_infeasible` says.

A rank with fewer packs than another runs zero-weight dummies in their place. What is skipped is skipped by every rank
and never is the last, synchronising micro-step, so no rank waits for another and no gradient stays unreduced.
The longest pack comes first: memory that does not suffice shows in the first forward, and ranks that meet in every
forward run their long packs at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import Trainer

from rollout_sft.model.forward import Batch

PACKS = "packs"
"""Key of a slot that does not hold exactly one pack: its packs, in order."""


def arrange(
    packs: Sequence[Batch], micro_steps: int, *, most: int, skip_idle: bool, make_dummy: Callable[[], Batch]
) -> list[Batch]:
    """
    Lays a rank's packs into its micro-steps.

    Args:
        packs (`Sequence[Batch]`):
            The packs that hold segments.
        micro_steps (`int`):
            Slots that the Trainer asked for.
        most (`int`):
            The largest number of packs on any rank, the same on all.
        skip_idle (`bool`):
            Whether micro-steps that are idle on every rank run nothing.
        make_dummy (`Callable[[], Batch]`):
            Makes the zero-weight batch of an idle forward.

    Returns:
        `list[Batch]`: exactly `micro_steps` slots. One with a single pack is that pack itself.
    """
    assert len(packs) <= most, (len(packs), most)
    forwards = max(most, 1 if skip_idle else micro_steps)
    runs = sorted(packs, key=lambda pack: -pack["input_ids"].numel())
    if forwards > len(packs):
        runs += [make_dummy()] * (forwards - len(packs))
    idle = max(0, micro_steps - forwards)
    single = micro_steps - idle - 1
    return [*(_slot([]) for _ in range(idle)), *runs[:single], _slot(runs[single:])]


def _slot(packs: list[Batch]) -> Batch:
    if len(packs) == 1:
        return packs[0]
    # The Trainer counts tokens and operations by `input_ids`.
    tokens = [pack["input_ids"].flatten() for pack in packs]
    return {"input_ids": torch.cat(tokens)[None] if tokens else torch.empty((1, 0), dtype=torch.int64), PACKS: packs}


def run_slot(trainer: Trainer, model: nn.Module, slot: Batch, train_pack: Callable[[Batch], Tensor]) -> Tensor:
    """
    One micro-step.

    Args:
        trainer (`Trainer`):
            Whose accelerator synchronises.
        model (`nn.Module`):
            The wrapped model.
        slot (`Batch`):
            As [`arrange`] made it.
        train_pack (`Callable[[Batch], Tensor]`):
            Forward and backward of one pack; returns its loss without a graph.

    Returns:
        `Tensor`: The slot's loss.
    """
    packs: list[Batch] = slot.get(PACKS, [slot])
    loss = torch.zeros((), device=trainer.args.device)
    if not packs:
        return loss
    accelerator = trainer.accelerator
    synchronises = accelerator.sync_gradients
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    for pack in packs[:-1]:
        # The last pack synchronises for all. DeepSpeed steps its optimizer where the flag says so.
        accelerator.gradient_state._set_sync_gradients(False)
        try:
            with nullcontext() if deepspeed else accelerator.no_sync(model):
                loss = loss + train_pack(pack)
        finally:
            accelerator.gradient_state._set_sync_gradients(synchronises)
    return loss + train_pack(packs[-1])


def to_device(batch: Batch, device: torch.device) -> Batch:
    """One asynchronous copy per tensor of a pack, from pinned memory where there is a GPU."""

    def move(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.device == device:
            return value
        if device.type == "cuda" and value.device.type == "cpu":
            value = value.pin_memory()
        return value.to(device, non_blocking=True)

    return {name: move(value) for name, value in batch.items()}
