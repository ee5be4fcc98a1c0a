"""Carries samples from a data set to the step that trains them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rollout_sft.inputs.images import Image

Sample = Mapping[str, Any]
"""One item of the data set. The trainer reads `id` (str), `prompt_ids` (list[int]) and `images` (`Image` objects); the
target builder reads the rest, such as `objects`."""


@dataclass(frozen=True)
class MicroBatch:
    """Holds raw samples in a data loader; opaque, so that no library looks for tensors inside."""

    samples: tuple[Sample, ...]


def collate_raw(samples: Sequence[Mapping[str, Any]]) -> Any:
    """Collates samples without changing them; the trainer's data collator."""
    return MicroBatch(tuple(samples))


def read_prompt(sample: Sample) -> list[int]:
    """
    Returns the token ids of a sample's prompt.

    Args:
        sample (`Sample`):
            An item of the data set.

    Returns:
        `list[int]`: a copy of its `prompt_ids`.

    Raises:
        `ValueError`: it has no `prompt_ids`; the message names the sample and its columns.
    """
    if sample.get("prompt_ids") is None:
        raise ValueError(
            f"sample {sample.get('id', '?')!r} has no 'prompt_ids', only {sorted(sample)}; the data set has to give "
            "the prompt's token ids."
        )
    return list(sample["prompt_ids"])


def read_images(sample: Sample) -> tuple[Image, ...]:
    """
    Returns the images of a sample, in the order of their tokens.

    Raises:
        `ValueError`: its `images` are not [`~rollout_sft.inputs.images.Image`] objects.
    """
    images = tuple(sample.get("images") or ())
    for number, image in enumerate(images):
        if not isinstance(image, Image):
            raise ValueError(
                f"sample {sample.get('id', '?')!r}: images[{number}] is a {type(image).__name__}; give a "
                "rollout_sft.inputs.images.Image, which refers to the file and knows its height and width."
            )
    return images


def read_id(sample: Sample, index: int) -> str:
    """
    Returns the id of an evaluated sample, which seeds its rollout, so that no batch size or rank changes a score.

    Args:
        sample (`Sample`):
            An item of the data set.
        index (`int`):
            Its place among the samples that are answered together.

    Returns:
        `str`: its `id` as text.

    Raises:
        `ValueError`: it has no `id`; the message names the sample's place and its columns.
    """
    if "id" not in sample:
        raise ValueError(
            f"sample {index} of the evaluation batch has no 'id', only {sorted(sample)}; the id seeds its rollout. "
            "Give every evaluation sample a unique id, such as its index."
        )
    return str(sample["id"])
