"""Draws each token of Hugging Face's `generate`: what `decoding` asks for, with a separate generator for every row.

`generate` itself stays greedy. The last processor draws the token and leaves only that one possible, so a response does
not depend on its neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rollout_sft.config.decoding import Decoding


def sampling_processors(
    decoding: Decoding, seeds: Sequence[int], *, pads: Sequence[int], banned: Collection[int]
) -> LogitsProcessorList:
    """
    Makes the logits processors that sample one batch.

    Args:
        decoding (`Decoding`):
            How to sample; temperature 0 leaves the most likely token to `generate`.
        seeds (`Sequence[int]`):
            The seed of each row.
        pads (`Sequence[int]`):
            The padding on the left of each row, in tokens.
        banned (`Collection[int]`):
            Tokens that are never generated.
    """
    processors = LogitsProcessorList()
    if banned:
        processors.append(_Ban(sorted(banned)))
    if decoding.repetition_penalty != 1:
        processors.append(_RepetitionPenaltyWithoutPadding(decoding.repetition_penalty, pads))
    if decoding.temperature == 0:
        return processors
    if decoding.temperature != 1:
        processors.append(TemperatureLogitsWarper(decoding.temperature))
    if decoding.top_k:
        processors.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p < 1:
        processors.append(TopPLogitsWarper(decoding.top_p))
    if decoding.min_p:
        processors.append(MinPLogitsWarper(decoding.min_p))
    processors.append(_SampleByExponentialRace(seeds))
    return processors


class _Ban(LogitsProcessor):
    """Makes tokens impossible."""

    def __init__(self, token_ids: Sequence[int]):
        self._token_ids = torch.tensor(token_ids)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._token_ids = self._token_ids.to(scores.device)
        return scores.index_fill(1, self._token_ids, float("-inf"))


class _SampleByExponentialRace(LogitsProcessor):
    """Picks each row's token with the row's own generator and leaves only that token possible.

    `argmax(p / q)` with `q` exponential is a draw from `p` (a form of the Gumbel-max trick).
    """

    def __init__(self, seeds: Sequence[int]):
        self._seeds = seeds
        self._generators: list[torch.Generator] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self._generators:
            self._generators = [torch.Generator(device=scores.device).manual_seed(s) for s in self._seeds]
        race = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(race, self._generators, strict=True):
            row.exponential_(generator=generator)
        drawn = (torch.softmax(scores.float(), dim=-1) / race).argmax(dim=-1, keepdim=True)
        return torch.full_like(scores, float("-inf")).scatter_(1, drawn, 0.0)


class _RepetitionPenaltyWithoutPadding(LogitsProcessor):
    """Applies the repetition penalty without the padding on the left, which must not change the penalty."""

    def __init__(self, penalty: float, pads: Sequence[int]):
        self._penalty = RepetitionPenaltyLogitsProcessor(penalty)
        self._pads = pads

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = [self._penalty(i[None, p:], s[None]) for i, s, p in zip(input_ids, scores, self._pads, strict=True)]
        return torch.cat(rows)
