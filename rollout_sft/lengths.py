"""Measures samples before training: their prompts, and the segments of their reference answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from transformers.trainer_utils import has_length

from rollout_sft.data.samples import Sample, read_prompt
from rollout_sft.inputs.segment import SUPERVISED
from rollout_sft.parts import Parts
from rollout_sft.rollouts.end_tokens import find_end_tokens
from rollout_sft.targets.notes import naming

PROMPTS = 20_000
"""The most prompts that are encoded to find the longest."""
REFERENCES = 512
"""The most reference answers that are built."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """
    Holds what was found in the training data.

    Args:
        prompts (`int`):
            How many prompts were encoded.
        longest (`int`):
            Tokens of the longest of them.
        longest_id (`str`):
            Its sample.
        references (`list[int]`):
            Tokens of segments with their reference answer.
        responses (`list[int]`):
            Tokens of these answers alone, their end included.
        ends (`int`):
            How many of these segments train the end token.
        highest_id (`int`):
            The highest token id that was read or trained.
        highest_id_in (`str`):
            Its sample.
        evaluates (`bool`):
            Whether there is data for evaluation.
        total (`int`, *optional*):
            How many samples there are; None for a stream.
    """

    prompts: int
    longest: int
    longest_id: str
    references: list[int]
    responses: list[int] = field(default_factory=list)
    ends: int = 0
    highest_id: int = 0
    highest_id_in: str = ""
    evaluates: bool = False
    total: int | None


def measure(parts: Parts, *, prompts: int = PROMPTS, needs_references: bool = True) -> Lengths:
    """
    Encodes prompts and builds reference answers, of a bounded number of samples.

    Args:
        parts ([`~rollout_sft.parts.Parts`]):
            The data, the tokenizer and the target builder.
        prompts (`int`, *optional*, defaults to 20,000):
            The most prompts.
        needs_references (`bool`, *optional*, defaults to `True`):
            Whether training builds reference answers; where it does not, a builder may fail at them.

    Raises:
        `ValueError`: there is no sample.
    """
    total = len(parts.train) if has_length(parts.train) else None
    found: list[tuple[int, str]] = []
    highest: tuple[int, str] = (0, "")
    references: list[int] = []
    responses: list[int] = []
    ends, end_id = 0, find_end_tokens(parts.tokenizer).trained
    # A builder may have no reference answers.
    without = NotImplementedError if needs_references else Exception
    for sample in islice(samples(parts.train), prompts):
        ids, name = read_prompt(sample), str(sample.get("id"))
        found.append((len(ids), name))
        highest = max(highest, (max(ids, default=0), name))
        if len(references) < REFERENCES:
            with suppress(without), naming(parts.target_builder, sample):
                segment = parts.target_builder.build_reference(sample).segment
                references.append(segment.encoded_len)
                responses.append(segment.encoded_len - len(ids))
                targets = segment.targets[segment.indices[SUPERVISED]]
                ends += bool((targets == end_id).any())
                trained = max(int(segment.input_ids.max()), *targets.tolist(), 0)
                highest = max(highest, (trained, name))
    if not found:
        raise ValueError("data.train gives no samples, so there is nothing to train.")
    longest, longest_id = max(found, key=lambda prompt: prompt[0])
    return Lengths(
        prompts=len(found),
        longest=longest,
        longest_id=longest_id,
        references=references,
        responses=responses,
        ends=ends,
        highest_id=highest[0],
        highest_id_in=highest[1],
        evaluates=parts.eval is not None,
        total=total,
    )


def samples(dataset: Any) -> Iterator[Sample]:
    """Returns the samples of a data set, in order; of one with a length by their index."""
    size = len(dataset) if has_length(dataset) else None
    return iter(dataset) if size is None else (dataset[i] for i in range(size))
