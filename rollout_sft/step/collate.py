"""Turns packs into tensors: what the model's forward receives, and what the loss compares its logits with.

The segments of a pack stay isolated only if the model sees positions that restart and *no* attention mask. An
all-ones mask, `use_cache=True`, or `cu_seq_lens` without `position_ids` leak silently. Only this module builds the
tensors that ensure isolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from packsched import Pack, PackLayout
from rollout_sft.inputs.segment import SUPERVISED, Segment, pack_of
from rollout_sft.model.forward import Inputs


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedBatch:
    """
    Holds one pack as tensors: a row without padding, or, without packing, a padded rectangle.

    Args:
        pack (`Pack[Segment]`):
            The pack that was collated. An empty pack gives the dummy, which has one token and supervises nothing: its
            forward and backward give every parameter a zero gradient.
        forward (`dict`):
            What the model's forward receives, before [`~rollout_sft.model.forward.prepare_forward`].
        supervised (`Tensor` of shape `(supervised,)`, int64):
            The positions that the loss reads, in the flattened rows of `forward["input_ids"]`.
        targets (`Tensor` of shape `(supervised,)`, int64):
            The target token of each of these positions.
        weights (`Tensor` of shape `(supervised,)`):
            The loss weight of each of these positions.
    """

    pack: Pack[Segment]
    forward: Inputs
    supervised: Tensor
    targets: Tensor
    weights: Tensor

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


def collate_pack(pack: Pack[Segment], *, filler_id: int) -> PackedBatch:
    """
    Concatenates the segments of a pack into one row without padding.

    Args:
        pack (`Pack[Segment]`):
            Segments on one device. The row is checked against the pack's `packing_length` once more. An empty pack
            gives the dummy of [`PackedBatch`].
        filler_id (`int`):
            The token of the dummy.

    Returns:
        [`PackedBatch`]: its `forward` holds the result of [`forward_inputs`], and `logits_to_keep`.
    """
    filled = pack
    if not pack.segments:
        filled = pack_of([Segment.from_lists([filler_id], [filler_id], [0.0], sample_id="<dummy>")])
    segments, layout = filled.segments, filled.layout
    supervised = remapped(segments, layout, SUPERVISED)
    forward = forward_inputs(filled)
    assert forward["input_ids"].shape == (1, layout.total), (forward["input_ids"].shape, layout)
    assert layout.total <= filled.packing_length, (layout.total, filled.packing_length)
    return PackedBatch(
        pack=pack,
        forward={**forward, "logits_to_keep": supervised},
        supervised=supervised,
        targets=layout.concat([s.targets for s in segments])[supervised],
        weights=layout.concat([s.weights for s in segments])[supervised],
    )


def forward_inputs(pack: Pack[Segment]) -> Inputs:
    """
    Tells the model which tokens of a packed row belong together.

    Args:
        pack (`Pack[Segment]`):
            At least one segment, all on one device.

    Returns:
        `dict`: `input_ids`, `position_ids`, `seq_idx` of shape `(1, total)`; `cu_seq_lens_q/k` of shape
        `(segments + 1,)` int32; `max_length_q/k` as Python integers; `use_cache=False`. There is no
        `attention_mask`.
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


def collate_padded(pack: Pack[Segment], *, filler_id: int) -> PackedBatch:
    """
    Pads the segments of one micro-batch on the right into a rectangle. Used when `training.packing` is false.

    Args:
        pack (`Pack[Segment]`):
            The micro-batch's segments on one device; without segments the result is the dummy of [`PackedBatch`].
        filler_id (`int`):
            The padding token; it is masked out and never supervised.

    Returns:
        [`PackedBatch`]: its `forward` holds `input_ids` and `attention_mask` of shape `(segments, longest)`, and
        `use_cache=False`.
    """
    segments = pack.segments
    if not segments:
        return collate_pack(pack, filler_id=filler_id)
    device = segments[0].input_ids.device
    longest = max(s.encoded_len for s in segments)
    input_ids = torch.full((len(segments), longest), filler_id, dtype=torch.int64, device=device)
    mask = torch.zeros((len(segments), longest), dtype=torch.int64, device=device)
    for row, s in enumerate(segments):
        input_ids[row, : s.encoded_len] = s.input_ids
        mask[row, : s.encoded_len] = 1
    return PackedBatch(
        pack=pack,
        forward={"input_ids": input_ids, "attention_mask": mask, "use_cache": False},
        supervised=torch.cat([s.indices[SUPERVISED] + row * longest for row, s in enumerate(segments)]),
        targets=torch.cat([s.targets[s.indices[SUPERVISED]] for s in segments]),
        weights=torch.cat([s.weights[s.indices[SUPERVISED]] for s in segments]),
    )
