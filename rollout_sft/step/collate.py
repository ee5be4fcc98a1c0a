"""From packs to what the model's forward receives.

Isolation of the segments in a pack rests on the model seeing positions that restart and *no* attention mask: an
all-ones mask, `use_cache=True`, or `cu_seq_lens` without `position_ids` leak silently. The whole contract is
built here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from packsched import PackLayout
from rollout_sft.inputs.segment import SUPERVISED, Segment
from rollout_sft.model.forward import Batch


def collate_pack(segments: Sequence[Segment], packing_length: int, *, filler_id: int) -> Batch:
    """
    Concatenates the segments of one pack into a padding-free batch of one row.

    Args:
        segments (`Sequence[Segment]`):
            The pack's segments, on one device. None at all gives the dummy: one token and nothing supervised, so
            its forward and backward touch every parameter with a zero gradient.
        packing_length (`int`):
            The hard cap in tokens, checked once more on what was built.
        filler_id (`int`):
            The token of the dummy.

    Returns:
        `dict`: `input_ids`, `position_ids`, `seq_idx` of shape `(1, total)`; `cu_seq_lens_q/k` of shape
        `(segments + 1,)` int32; `max_length_q/k` as Python integers; `use_cache=False`; `logits_to_keep`,
        `targets`, `weights` of shape `(supervised,)`. There is no `attention_mask`.
    """
    if not segments:
        segments = [Segment.from_lists([filler_id], [filler_id], [0.0], sample_id="<dummy>")]
    layout = PackLayout.from_lengths([s.encoded_len for s in segments])
    kept = remapped(segments, layout, SUPERVISED)
    batch = forward_inputs(segments)
    assert batch["input_ids"].shape == (1, layout.total), (batch["input_ids"].shape, layout)
    assert layout.total <= packing_length, (layout.total, packing_length)
    return {
        **batch,
        "logits_to_keep": kept,
        "targets": layout.concat([s.targets for s in segments])[kept],
        "weights": layout.concat([s.weights for s in segments])[kept],
    }


def forward_inputs(segments: Sequence[Segment]) -> Batch:
    """
    What tells the model which tokens of a packed row belong together.

    Args:
        segments (`Sequence[Segment]`):
            The pack's segments, at least one, on one device.

    Returns:
        `dict`: the part of [`collate_pack`]'s result that the leak probe shares with training.
    """
    layout = PackLayout.from_lengths([s.encoded_len for s in segments])
    device = segments[0].input_ids.device
    cu_seqlens = torch.as_tensor(layout.cu_seqlens, device=device)
    return {
        "input_ids": layout.concat([s.input_ids for s in segments])[None],
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
    One named index field of all segments of a pack, at its positions in the pack.

    Args:
        segments (`Sequence[Segment]`):
            The pack's segments, at least one.
        layout (`PackLayout`):
            Where each segment lies.
        name (`str`):
            The index field; a segment without it contributes nothing.

    Returns:
        `Tensor`: int64 positions in the packed row.
    """
    fields = [layout.remap(i, s.indices[name]) for i, s in enumerate(segments) if name in s.indices]
    return torch.cat(fields) if fields else torch.empty(0, dtype=torch.int64, device=segments[0].input_ids.device)


def collate_padded(segments: Sequence[Segment], *, filler_id: int) -> Batch:
    """
    Right-pads the segments of one micro-batch into a rectangle: what runs when `training.packing` is false.

    Args:
        segments (`Sequence[Segment]`):
            The segments on one device; none at all gives the dummy of [`collate_pack`].
        filler_id (`int`):
            The padding token; masked out and never supervised.

    Returns:
        `dict`: `input_ids` and `attention_mask` of shape `(segments, longest)`, `use_cache=False`, `targets` and
        `weights` of shape `(supervised,)`, and `kept`: the supervised positions in the flattened rectangle.
    """
    if not segments:
        return collate_pack([], 1, filler_id=filler_id)
    device = segments[0].input_ids.device
    longest = max(s.encoded_len for s in segments)
    input_ids = torch.full((len(segments), longest), filler_id, dtype=torch.int64, device=device)
    mask = torch.zeros((len(segments), longest), dtype=torch.int64, device=device)
    for row, s in enumerate(segments):
        input_ids[row, : s.encoded_len] = s.input_ids
        mask[row, : s.encoded_len] = 1
    return {
        "input_ids": input_ids,
        "attention_mask": mask,
        "use_cache": False,
        "kept": torch.cat([s.indices[SUPERVISED] + row * longest for row, s in enumerate(segments)]),
        "targets": torch.cat([s.targets[s.indices[SUPERVISED]] for s in segments]),
        "weights": torch.cat([s.weights[s.indices[SUPERVISED]] for s in segments]),
    }
