"""Saves and loads the carry buffers of scope `micro`: one file per rank, which is read without running code.

Images are saved as references, as the segments hold them: a path, encoded bytes, or uint8 pixels.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from packsched import CarryBuffer
from rollout_sft.inputs.images import Image
from rollout_sft.inputs.segment import Segment
from rollout_sft.step.packing_errors import in_yaml_terms


def save_carry_buffer(buffer: CarryBuffer[Segment], checkpoint: str | Path, *, rank: int, ranks: int) -> None:
    """
    Writes this rank's waiting segments into the checkpoint.

    Args:
        buffer (`CarryBuffer`):
            The rank's buffer.
        checkpoint (`str` or `Path`):
            The checkpoint's folder; created if it does not exist.
        rank (`int`):
            This process's rank.
        ranks (`int`):
            How many processes there are.
    """
    folder = Path(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    state = buffer.state_dict()
    state["segments"] = [_plain(segment) for segment in state["segments"]]
    unfinished = folder / f"{_name(rank)}.tmp"
    torch.save({"ranks": ranks, "buffer": state}, unfinished)
    os.replace(unfinished, folder / _name(rank))


def load_carry_buffer(buffer: CarryBuffer[Segment], checkpoint: str | Path, *, rank: int, ranks: int) -> None:
    """
    Restores the waiting segments of a checkpoint.

    Args:
        buffer (`CarryBuffer`):
            The rank's buffer; a failed call does not change it.
        checkpoint (`str` or `Path`):
            The checkpoint's folder.
        rank (`int`):
            This process's rank.
        ranks (`int`):
            How many processes there are now.

    Raises:
        `ValueError`: the checkpoint has no buffer for this rank, or a different number of ranks saved it.
    """
    path = Path(checkpoint) / _name(rank)
    way_out = (
        "Resume with as many ranks as saved it, or set rollout_matching.post_rollout_pack_scope: window, "
        "which carries nothing between steps (and training.resume_with_changes: "
        "[ranks, rollout_matching.post_rollout_pack_scope])."
    )
    if not path.is_file():
        raise ValueError(f"{checkpoint} has no {path.name}: it was not saved in scope micro by this rank. {way_out}")
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if saved["ranks"] != ranks:
        raise ValueError(
            f"{checkpoint} holds the carry buffers of {saved['ranks']} ranks, but {ranks} resume it. {way_out}"
        )
    state = saved["buffer"]
    with in_yaml_terms():
        buffer.load_state_dict({**state, "segments": [_segment(fields) for fields in state["segments"]]})


def carried(checkpoint: str | Path) -> list[int]:
    """
    Returns the lengths of the segments that wait in a checkpoint's carry buffers.

    Args:
        checkpoint (`str` or `Path`):
            The checkpoint's folder.

    Returns:
        `list[int]`: lengths of the waiting segments of all ranks; empty if it was not saved in scope `micro`.
    """
    states = [
        torch.load(path, map_location="cpu", weights_only=True) for path in sorted(Path(checkpoint).glob(_name("*")))
    ]
    return [len(fields["input_ids"]) for state in states for fields in state["buffer"]["segments"]]


def _plain(segment: Segment) -> dict[str, Any]:
    """Returns the fields of a segment as tensors and plain values; its images stay references."""
    images = [
        {
            "source": image.source if isinstance(image.source, str) else torch.from_numpy(_bytes(image.source)),
            "height": image.height,
            "width": image.width,
            "digest": image.digest,
        }
        for image in segment.images
    ]
    return {**vars(segment.to("cpu")), "images": images}


def _bytes(source: bytes | np.ndarray) -> np.ndarray:
    """Returns pixels unchanged, and the bytes of an encoded image as an array of one dimension."""
    return np.frombuffer(source, dtype=np.uint8).copy() if isinstance(source, bytes) else source


def _segment(fields: dict[str, Any]) -> Segment:
    images = []
    for image in fields.get("images", ()):
        source = image["source"]
        if isinstance(source, torch.Tensor):
            source = source.numpy() if source.ndim == 3 else source.numpy().tobytes()
        images.append(Image(**{**image, "source": source}))
    return Segment(**{**fields, "images": tuple(images)})


def _name(rank: int | str) -> str:
    return f"carry_buffer_rank{rank}.pt"
