"""Samples on their way from a data set to the step that trains them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Sample = Mapping[str, Any]
"""One item of the data set: `id` (str) and `prompt_ids` (list[int]) are read by the trainer, the rest (such as
`objects`) by the target builder."""


@dataclass(frozen=True)
class MicroBatch:
    """Raw samples on their way through a data loader, opaque so that no library looks for tensors inside."""

    samples: tuple[Sample, ...]


def collate_raw(samples: Sequence[Mapping[str, Any]]) -> Any:
    """The trainer's data collator: keeps the samples as they are."""
    return MicroBatch(tuple(samples))


def read_prompt(sample: Sample) -> list[int]:
    """
    The prompt's token ids of a sample.

    Args:
        sample (`Sample`):
            An item of the data set.

    Returns:
        `list[int]`: a copy of its `prompt_ids`.

    Raises:
        `ValueError`: it has none; names the sample and what it has.
    """
    if sample.get("prompt_ids") is None:
        raise ValueError(
            f"sample {sample.get('id', '?')!r} has no 'prompt_ids', only {sorted(sample)}; the data set has to give "
            "the prompt's token ids."
        )
    return list(sample["prompt_ids"])


def read_id(sample: Sample, index: int) -> str:
    """
    The id of a sample that is evaluated: the seed of its rollout, so that no batch size or rank changes a score.

    Args:
        sample (`Sample`):
            An item of the data set.
        index (`int`):
            Where it stands among the samples answered together.

    Returns:
        `str`: its `id` as text.

    Raises:
        `ValueError`: it has none; names the sample by its place and what it has.
    """
    if "id" not in sample:
        raise ValueError(
            f"sample {index} of the evaluation batch has no 'id', only {sorted(sample)}; its rollout is seeded by the "
            "id. Give every evaluation sample an id that no other has, such as its index."
        )
    return str(sample["id"])
