"""Carries samples from a data set to the step that trains them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Sample = Mapping[str, Any]
"""One item of the data set. The trainer reads `id` (str) and `prompt_ids` (list[int]); the target builder reads the
rest, such as `objects`."""


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
