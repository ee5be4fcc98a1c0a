"""Answers with any number of objects, made beforehand: what parsing, matching and building cost, without a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from examples.digits.tokenizer import JSON, word_tokenizer
from rollout_sft.rollouts.base import Rollout, RolloutRequest

SIDE = 1000
PROMPT = 16
"""Tokens of a prompt; the first is the number of the sample."""


def box_tokenizer() -> PreTrainedTokenizerFast:
    """Makes a tokenizer in which a coordinate up to 1,000 is one token."""
    return word_tokenizer([*map(str, range(SIDE + 1)), *(f'"{digit}"' for digit in range(10)), *JSON])


class MadeAnswers(Dataset[dict[str, Any]]):
    """
    A data set and rollout backend in one: sample i has `objects` true objects, and its response most of them.

    Of the objects of a response 4 in 5 lie near a true one; the others lie anywhere.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, samples: int, objects: int):
        rng = np.random.default_rng(0)
        self.counters: dict[str, tuple[float, float]] = {}
        self._first = tokenizer.convert_tokens_to_ids("0")
        self._samples, self._responses = [], []
        for number in range(samples):
            truth = self._boxes(rng, objects)
            found = truth + rng.integers(-2, 3, size=truth.shape)
            anywhere = rng.random(objects) < 0.2
            found[anywhere] = self._boxes(rng, objects)[anywhere]
            wanted, written = (self._objects(boxes) for boxes in (truth, found.clip(0, SIDE)))
            prompt = [self._first + number] * PROMPT
            self._samples.append({"id": str(number), "prompt_ids": prompt, "objects": wanted})
            self._responses.append(tokenizer.encode(json.dumps(written), add_special_tokens=False))

    @staticmethod
    def _boxes(rng: np.random.Generator, number: int) -> np.ndarray:
        corners = rng.integers(5, SIDE - 105, size=(number, 2))
        return np.concatenate([corners, corners + rng.integers(20, 100, size=(number, 2))], axis=1)

    @staticmethod
    def _objects(boxes: np.ndarray) -> list[dict[str, Any]]:
        return [{"desc": str(i % 10), "bbox_2d": box} for i, box in enumerate(boxes.tolist())]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._samples[index]

    def generate(self, requests: Sequence[RolloutRequest]) -> list[Rollout]:
        """Returns the response of the sample that the prompt names."""
        numbers = [request.prompt_ids[0] - self._first for request in requests]
        return [Rollout(response_ids=list(self._responses[number]), truncated=False) for number in numbers]
