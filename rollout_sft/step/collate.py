"""Turns packs into tensors: what the model's forward receives, and what the loss compares its logits with.

The segments of a pack stay isolated only if the model sees positions that restart and *no* attention mask. An
all-ones mask, `use_cache=True`, or `cu_seq_lens` without `position_ids` leak silently. Only this module and the input
adapter build the tensors that ensure isolation.

A forward of a model with a vision tower always holds an image, since every rank's tower has to take part in every
backward: a forward without one gets the adapter's dummy segment at its end. Pixels join late, with [`with_media`].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from packsched import Pack, PackLayout
from rollout_sft.inputs.base import InputAdapter
from rollout_sft.inputs.images import Image
from rollout_sft.inputs.segment import SUPERVISED, Segment, pack_of
from rollout_sft.inputs.text import TextInputs
from rollout_sft.model.forward import Inputs

TEXT = TextInputs()
"""The adapter of models that read text alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedBatch:
    """
    Holds one pack as tensors: a row without padding, or, without packing, a padded rectangle.

    Args:
        pack (`Pack[Segment]`):
            The pack that was collated. An empty pack gives the dummy, which has two tokens and supervises nothing: its
            forward and backward give every parameter a zero gradient.
        segments (`tuple[Segment, ...]`):
            The segments of the forward: those of the pack, and the dummy where the forward needs one.
        forward (`dict`):
            What the model's forward receives, before [`~rollout_sft.model.forward.prepare_forward`]. It has no pixels
            before [`with_media`].
        supervised (`Tensor` of shape `(supervised,)`, int64):
            The positions that the loss reads, in the flattened rows of `forward["input_ids"]`.
        targets (`Tensor` of shape `(supervised,)`, int64):
            The target token of each of these positions.
        weights (`Tensor` of shape `(supervised,)`):
            The loss weight of each of these positions.
    """

    pack: Pack[Segment]
    segments: tuple[Segment, ...]
    forward: Inputs
    supervised: Tensor
    targets: Tensor
    weights: Tensor

    @property
    def images(self) -> tuple[Image, ...]:
        """Returns the images of the forward, in the order of their tokens."""
        return tuple(image for segment in self.segments for image in segment.images)

    @property
    def tokens(self) -> int:
        """Returns the number of positions that the forward computes, padding included."""
        ids: Tensor = self.forward["input_ids"]
        return ids.numel()

    def to(self, device: torch.device) -> PackedBatch:
        """Copies every tensor to `device`, to a GPU from pinned memory; does not wait for the copies."""

        def move(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.device == device:
                return value
            if device.type == "cuda" and value.device.type == "cpu":
                value = value.pin_memory()
            return value.to(device, non_blocking=True)

        return replace(
            self,
            forward={name: move(value) for name, value in self.forward.items()},
            supervised=move(self.supervised),
            targets=move(self.targets),
            weights=move(self.weights),
        )

    def as_inputs(self) -> Inputs:
        """Returns the plain dict that `Trainer.training_step` hands to `compute_loss`; see [`split_inputs`]."""
        return {**self.forward, "supervised": self.supervised, "targets": self.targets, "weights": self.weights}


def split_inputs(inputs: Inputs) -> tuple[Inputs, Tensor, Tensor, Tensor]:
    """Undoes [`PackedBatch.as_inputs`]: returns `forward`, `supervised`, `targets` and `weights`."""
    forward = dict(inputs)
    supervised, targets, weights = (forward.pop(name) for name in ("supervised", "targets", "weights"))
    return forward, supervised, targets, weights


def with_media(batch: PackedBatch, adapter: InputAdapter) -> PackedBatch:
    """Decodes and preprocesses the images of a batch; returns the batch unchanged when it has none."""
    if not batch.images:
        return batch
    return replace(batch, forward={**batch.forward, **adapter.media(batch.images)})


def collate_pack(pack: Pack[Segment], *, filler_id: int, adapter: InputAdapter = TEXT) -> PackedBatch:
    """
    Concatenates the segments of a pack into one row without padding.

    Args:
        pack (`Pack[Segment]`):
            Segments on one device. The row is checked against the pack's `packing_length` once more. An empty pack
            gives the dummy of [`PackedBatch`].
        filler_id (`int`):
            The token of the dummy of a text model.
        adapter (`InputAdapter`, *optional*):
            Gives positions, and the dummy of an image model; its tokens come in addition to `packing_length`.

    Returns:
        [`PackedBatch`]: its `forward` holds the result of [`forward_inputs`], and `logits_to_keep`.
    """
    dummies = _dummies(pack.segments, adapter)
    if not pack.segments and not dummies:
        # Two tokens: the decay of RWKV has no part in a segment of one, and FSDP2 reduces what every rank has.
        dummies = [Segment.from_lists([filler_id] * 2, [filler_id] * 2, [0.0] * 2, sample_id="<dummy>")]
    row = _extended(pack, dummies) if dummies else pack
    segments, layout = row.segments, row.layout
    supervised = remapped(segments, layout, SUPERVISED)
    forward = forward_inputs(row, adapter)
    assert forward["input_ids"].shape == (1, layout.total), (forward["input_ids"].shape, layout)
    assert layout.total <= row.packing_length, (layout.total, row.packing_length)
    return PackedBatch(
        pack=pack,
        segments=segments,
        forward={**forward, "logits_to_keep": supervised},
        supervised=supervised,
        targets=layout.concat([s.targets for s in segments])[supervised],
        weights=layout.concat([s.weights for s in segments])[supervised],
    )


def _dummies(segments: Sequence[Segment], adapter: InputAdapter) -> list[Segment]:
    """Returns what a forward of these segments needs in addition: the adapter's dummy if no segment has an image."""
    dummy = adapter.dummy()
    if dummy is None or any(s.images for s in segments):
        return []
    return [dummy.to(segments[0].input_ids.device) if segments else dummy]


def _extended(pack: Pack[Segment], dummies: Sequence[Segment]) -> Pack[Segment]:
    """Adds dummies behind the segments of a pack; the plan reserved their tokens in addition to `packing_length`."""
    lens = [s.encoded_len for s in dummies]
    segments = (*pack.segments, *dummies)
    layout = PackLayout.from_lengths([*pack.layout.encoded_lens, *lens])
    return Pack(segments, tuple(range(len(segments))), layout, pack.packing_length + sum(lens))


def forward_inputs(pack: Pack[Segment], adapter: InputAdapter = TEXT) -> Inputs:
    """
    Tells the model which tokens of a packed row belong together.

    Args:
        pack (`Pack[Segment]`):
            At least one segment, all on one device.
        adapter (`InputAdapter`, *optional*):
            Replaces and adds arguments, such as the positions of an image model.

    Returns:
        `dict`: `input_ids`, `position_ids`, `seq_idx` of shape `(1, total)`; `cu_seq_lens_q/k` of shape
        `(segments + 1,)` int32; `max_length_q/k` as Python integers; `use_cache=False`. There is no
        `attention_mask`, and there are no pixels.
    """
    layout, device = pack.layout, pack.segments[0].input_ids.device
    cu_seqlens = torch.as_tensor(layout.cu_seqlens, device=device)
    return {
        "input_ids": layout.concat([s.input_ids for s in pack.segments])[None],
        "position_ids": torch.as_tensor(layout.position_ids, device=device)[None],
        "seq_idx": torch.as_tensor(layout.segment_ids, device=device)[None],
        "cu_seq_lens_q": cu_seqlens,
        "cu_seq_lens_k": cu_seqlens,
        "max_length_q": layout.max_seqlen,
        "max_length_k": layout.max_seqlen,
        "use_cache": False,
        **adapter.packed(pack),
    }


def remapped(segments: Sequence[Segment], layout: PackLayout, name: str) -> Tensor:
    """
    Moves one named index field of all segments to its positions in the pack.

    Args:
        segments (`Sequence[Segment]`):
            The pack's segments, at least one.
        layout (`PackLayout`):
            Where each segment lies.
        name (`str`):
            The index field; a segment without this field contributes nothing.

    Returns:
        `Tensor`: int64 positions in the packed row.
    """
    fields = [layout.remap(i, s.indices[name]) for i, s in enumerate(segments) if name in s.indices]
    return torch.cat(fields) if fields else torch.empty(0, dtype=torch.int64, device=segments[0].input_ids.device)


def collate_padded(pack: Pack[Segment], *, filler_id: int, adapter: InputAdapter = TEXT) -> PackedBatch:
    """
    Pads the segments of one micro-batch on the right into a rectangle. Used when `training.packing` is false.

    Args:
        pack (`Pack[Segment]`):
            The micro-batch's segments on one device; without segments the result is the dummy of [`PackedBatch`].
        filler_id (`int`):
            The padding token; it is masked out and never supervised.
        adapter (`InputAdapter`, *optional*):
            Gives token types, and the dummy of an image model, which gets a row of its own.

    Returns:
        [`PackedBatch`]: its `forward` holds `input_ids` and `attention_mask` of shape `(rows, longest)`, and
        `use_cache=False`.
    """
    if not pack.segments:
        return collate_pack(pack, filler_id=filler_id, adapter=adapter)
    return _rectangle(pack, [*pack.segments, *_dummies(pack.segments, adapter)], filler_id, adapter)


def collate_alone(segment: Segment, *, filler_id: int, adapter: InputAdapter = TEXT) -> PackedBatch:
    """Makes the plain forward of one segment, as the model runs it by itself; see [`collate_padded`]."""
    return _rectangle(pack_of([segment]), [segment], filler_id, adapter)


def _rectangle(pack: Pack[Segment], segments: Sequence[Segment], filler_id: int, adapter: InputAdapter) -> PackedBatch:
    device = segments[0].input_ids.device
    longest = max(s.encoded_len for s in segments)
    input_ids = torch.full((len(segments), longest), filler_id, dtype=torch.int64, device=device)
    mask = torch.zeros((len(segments), longest), dtype=torch.int64, device=device)
    for row, s in enumerate(segments):
        input_ids[row, : s.encoded_len] = s.input_ids
        mask[row, : s.encoded_len] = 1
    further = adapter.padded([s.input_ids for s in segments], width=longest, left=False)
    return PackedBatch(
        pack=pack,
        segments=tuple(segments),
        forward={"input_ids": input_ids, "attention_mask": mask, "use_cache": False, **further},
        supervised=torch.cat([s.indices[SUPERVISED] + row * longest for row, s in enumerate(segments)]),
        targets=torch.cat([s.targets[s.indices[SUPERVISED]] for s in segments]),
        weights=torch.cat([s.weights[s.indices[SUPERVISED]] for s in segments]),
    )
