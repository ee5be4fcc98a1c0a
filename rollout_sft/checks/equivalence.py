"""Checks that the packs of a window train what its segments would train alone.

- The bookkeeping is compared exactly: every scheduled segment lies in one pack, with its own tokens, targets, weights,
  images, rows of positions and remapped index fields. The message names the first difference: segment, field, position.
- Loss and gradient of the packs are compared, within a tolerance by dtype, with those of the same segments run one by
  one, unpacked, through a plain forward.

Costs two forward/backward passes over the window and two copies of the gradient; leaves the model unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from packsched import PackLayout
from rollout_sft.inputs.base import InputAdapter
from rollout_sft.inputs.segment import SUPERVISED, Segment, pack_of
from rollout_sft.model.wrappers import evaluation_mode
from rollout_sft.ranks.distributed import together
from rollout_sft.step.collate import TEXT, PackedBatch, collate_alone, forward_inputs, remapped, with_media
from rollout_sft.step.open_window import BuiltWindow

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Largest relative difference of the gradients that is allowed, by the dtype of the computation."""

LossFn = Callable[[PackedBatch], Tensor]
"""Maps a batch to its share of the window's loss, with a graph."""


class ScheduleMismatchError(ValueError):
    """Raised when the scheduled packs do not train what the segments would train alone."""


@dataclass(frozen=True, kw_only=True)
class EquivalenceReport:
    """
    Holds the differences that the comparison measured.

    Args:
        loss (`float`):
            Relative difference of the losses.
        gradient (`float`):
            Relative difference of the gradients, in the 2-norm over all trainable parameters.
        tolerance (`float`):
            The largest difference that was allowed for both.
    """

    loss: float
    gradient: float
    tolerance: float


def validate_window(
    trainer: Trainer,
    window: BuiltWindow,
    *,
    weight_sum: float,
    device: torch.device,
    filler_id: int,
    adapter: InputAdapter,
) -> dict[str, float]:
    """
    Checks bookkeeping and arithmetic of this rank's window; every rank calls it at the same point.

    Args:
        trainer (`Trainer`):
            The trainer whose `compute_loss` is compared.
        window ([`~rollout_sft.step.open_window.BuiltWindow`]):
            The window that is trained next.
        weight_sum (`float`):
            Sum of the loss weights over all ranks.
        device (`torch.device`):
            Where the window is trained.
        filler_id (`int`):
            As in [`~rollout_sft.step.collate.collate_padded`].
        adapter (`InputAdapter`):
            Adds pixels and gives the expected positions.

    Returns:
        `dict[str, float]`: the largest differences on any rank, for the log line.

    Raises:
        [`ScheduleMismatchError`]: something differs on one rank; raised on every rank.
    """
    model: nn.Module = trainer.accelerator.unwrap_model(trainer.model)
    compute_loss: Any = trainer.compute_loss  # our denominator need not be an integer

    def loss_of(batch: PackedBatch) -> Tensor:
        with trainer.compute_loss_context_manager():
            inputs = with_media(batch, adapter).to(device).as_inputs()
            loss: Tensor = compute_loss(model, inputs, num_items_in_batch=weight_sum)
        return loss

    def compare() -> EquivalenceReport:
        check_bookkeeping(window.due, window.batches, adapter)
        return check_arithmetic(model, loss_of, window.due, window.batches, filler_id=filler_id, adapter=adapter)

    _, reports = together(compare, share=lambda report: report)
    return {
        "equivalence/loss": max(report.loss for report in reports),
        "equivalence/gradient": max(report.gradient for report in reports),
    }


def check_bookkeeping(due: Sequence[Segment], batches: Sequence[PackedBatch], adapter: InputAdapter = TEXT) -> None:
    """
    Compares the contents of the batches with the segments that they were made of.

    Args:
        due (`Sequence[Segment]`):
            The segments that should be trained, in the order in which they were made.
        batches (`Sequence[PackedBatch]`):
            The batches that are trained, from [`~rollout_sft.step.collate.collate_pack`].
        adapter (`InputAdapter`, *optional*):
            Gives the positions of each segment by itself.

    Raises:
        [`ScheduleMismatchError`]: they differ; the message names the first segment, field and position.
    """
    expected = {id(s) for s in due}
    seen: set[int] = set()
    for segment in (s for batch in batches for s in batch.pack.segments):
        if id(segment) in seen:
            raise ScheduleMismatchError(f"segment of sample {segment.sample_id!r} is scheduled twice.")
        if id(segment) not in expected:
            raise ScheduleMismatchError(f"segment of sample {segment.sample_id!r} is scheduled but was never built.")
        seen.add(id(segment))
    for segment in due:
        if id(segment) not in seen:
            raise ScheduleMismatchError(f"segment of sample {segment.sample_id!r} is in no micro-step.")
    for number, batch in enumerate(batches):
        if batch.pack.segments:
            _compare_pack(number, batch, adapter)
        elif float(batch.weights.sum()) != 0:
            raise ScheduleMismatchError(f"micro-step {number} has no segment but a loss weight.")


def _compare_pack(number: int, batch: PackedBatch, adapter: InputAdapter) -> None:
    segments = batch.segments  # the dummy included
    _compare_images(number, batch, adapter)
    layout = PackLayout.from_lengths([s.encoded_len for s in segments])  # made anew, since the pack's may be wrong
    row = batch.forward["input_ids"][0]
    rows = {"input_ids": row, **_rows_of_positions(batch.forward["position_ids"])}
    for name, values in (("targets", batch.targets), ("weights", batch.weights)):
        spread = torch.zeros(layout.total, dtype=values.dtype, device=values.device)
        rows[name] = spread.index_put((batch.forward["logits_to_keep"],), values)
    if row.numel() != layout.total:
        raise ScheduleMismatchError(f"micro-step {number} has {row.numel()} tokens, its segments {layout.total}.")
    packed_fields = {name: layout.split(values) for name, values in rows.items()}
    names = sorted({name for s in segments for name in s.indices})
    remapped_fields = {name: remapped(segments, layout, name) for name in names}
    for name, positions in remapped_fields.items():
        counts = [len(s.indices[name]) if name in s.indices else 0 for s in segments]
        whose, where = layout.locate(positions.cpu())
        owners = torch.repeat_interleave(torch.arange(len(segments)), torch.tensor(counts))
        own = torch.cat([s.indices[name].cpu() for s in segments if name in s.indices])
        wrong = (torch.as_tensor(whose) != owners) | (torch.as_tensor(where) != own)
        if wrong.any():
            at = int(wrong.nonzero()[0])
            raise _difference(number, segments[int(owners[at])], name, int(own[at]), int(own[at]), int(where[at]))
    for index, segment in enumerate(segments):
        mine = segment.indices[SUPERVISED]
        expected = {
            "input_ids": segment.input_ids,
            **_rows_of_positions(forward_inputs(pack_of([segment]), adapter)["position_ids"]),
            "targets": torch.zeros_like(segment.targets).index_put((mine,), segment.targets[mine]),
            "weights": torch.zeros_like(segment.weights).index_put((mine,), segment.weights[mine]),
        }
        for name, values in expected.items():
            found = packed_fields[name][index]
            wrong = found != values.to(found.device)
            if wrong.any():
                at = int(wrong.nonzero()[0])
                raise _difference(number, segment, name, at, values[at].item(), found[at].item())


def _compare_images(number: int, batch: PackedBatch, adapter: InputAdapter) -> None:
    trained = batch.pack.segments
    same = len(batch.segments) >= len(trained) and all(a is b for a, b in zip(trained, batch.segments, strict=False))
    if not same or any(s.weight_sum for s in batch.segments[len(trained) :]):
        raise ScheduleMismatchError(
            f"micro-step {number}: its forward holds segments of samples {[s.sample_id for s in batch.segments]}, but "
            f"its pack those of {[s.sample_id for s in trained]}, so images would meet the tokens of others."
        )
    for segment in batch.segments:
        try:
            adapter.check(segment)
        except ValueError as error:
            raise ScheduleMismatchError(f"micro-step {number}: {error}") from None


def _rows_of_positions(positions: Tensor) -> dict[str, Tensor]:
    """Names the rows of positions of shape `(1, tokens)` or `(4, 1, tokens)`."""
    if positions.ndim == 2:
        return {"position_ids": positions[0]}
    names = ("position_ids of the text", *(f"position_ids of {side}" for side in ("time", "height", "width")))
    return dict(zip(names, positions[:, 0], strict=True))


def _difference(
    number: int, segment: Segment, name: str, position: int, expected: float, found: float
) -> ScheduleMismatchError:
    return ScheduleMismatchError(
        f"micro-step {number}, segment of sample {segment.sample_id!r}, field {name}, position {position}: "
        f"the segment has {expected}, the pack {found}."
    )


def check_arithmetic(
    model: nn.Module,
    loss_of: LossFn,
    segments: Sequence[Segment],
    batches: Sequence[PackedBatch],
    *,
    filler_id: int,
    adapter: InputAdapter = TEXT,
) -> EquivalenceReport:
    """
    Compares loss and gradient of the packs with those of the segments one by one, unpacked.

    Args:
        model (`nn.Module`):
            The unwrapped model. It runs in evaluation mode, so that dropout cannot differ; its mode is restored.
        loss_of (`Callable[[PackedBatch], Tensor]`):
            A batch's share of the window's loss, with a graph.
        segments (`Sequence[Segment]`):
            All segments scheduled in the window.
        batches (`Sequence[PackedBatch]`):
            The scheduled packs.
        filler_id (`int`):
            As in [`~rollout_sft.step.collate.collate_padded`].
        adapter (`InputAdapter`, *optional*):
            As in [`~rollout_sft.step.collate.collate_padded`].

    Returns:
        [`EquivalenceReport`]: The differences.

    Raises:
        [`ScheduleMismatchError`]: a difference exceeds the tolerance of the parameters' dtype.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    with evaluation_mode(model):
        loss, gradient = _accumulate(loss_of, batches, parameters)
        alone = [collate_alone(segment, filler_id=filler_id, adapter=adapter) for segment in segments]
        plain_loss, plain_gradient = _accumulate(loss_of, alone, parameters)
    norm = sum(float(g.double().square().sum()) for g in plain_gradient) ** 0.5
    apart = (
        sum(float((a.double() - b.double()).square().sum()) for a, b in zip(gradient, plain_gradient, strict=True))
        ** 0.5
    )
    device = parameters[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else parameters[0].dtype
    tolerance = TOLERANCE[dtype]
    report = EquivalenceReport(
        loss=abs(loss - plain_loss) / max(abs(plain_loss), 1e-30),
        gradient=apart / max(norm, 1e-30),
        tolerance=tolerance,
    )
    if not max(report.loss, report.gradient) <= tolerance:
        raise ScheduleMismatchError(
            f"the scheduled packs and the {len(segments)} segments one by one disagree: loss by {report.loss:.1e}, "
            f"gradient by {report.gradient:.1e} (relative, {dtype}; allowed {tolerance:.0e}). The model may let packed "
            "segments see each other (rollout_sft.check_isolation) or add an auxiliary loss."
        )
    return report


def _accumulate(
    loss_of: LossFn, batches: Sequence[PackedBatch], parameters: list[nn.Parameter]
) -> tuple[float, list[Tensor]]:
    """Sums losses and gradients; does not call `backward`, which would change gradients and run hooks of training."""
    total = 0.0
    gradient = [torch.zeros_like(p) for p in parameters]
    for batch in batches:
        loss = loss_of(batch)
        total += loss.item()
        for sum_, part in zip(gradient, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            if part is not None:
                sum_ += part
    return total, gradient
