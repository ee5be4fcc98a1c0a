"""The backend in front of a vLLM engine.

    colocate   an engine in every rank's process (`colocated`)
    server     vLLM servers that were started beforehand (`server`)

Both get the live model's weights once per optimizer step, before the window's one `generate`, and refuse to generate
from any other. vLLM itself is imported inside functions only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rollout_sft.config.decoding import Decoding
from rollout_sft.rollouts.base import Rollout, RolloutRequest
from rollout_sft.rollouts.live_weights import LiveWeights


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine gave for one request: the prompt it read, and what it generated, an end token included."""

    prompt_ids: list[int]
    token_ids: list[int]


class Engine(Protocol):
    """
    Generates with a copy of the live weights.

    Attributes:
        version (`int` or `None`):
            Version of the [`LiveWeights`] that the copy was made of; None before the first one.
        max_model_len (`int`):
            Most tokens of a prompt and its response; known once weights are loaded.
        retries (`int`):
            How often something had to be asked again so far.
    """

    version: int | None
    max_model_len: int
    retries: int

    def load(self, weights: LiveWeights) -> None:
        """Takes over the live weights. Every rank calls it at the same point, and all fail together."""
        ...

    def generate(self, requests: Sequence[RolloutRequest], knobs: Mapping[str, Any]) -> list[Answer]:
        """One answer per request; `knobs` are fields of vLLM's `SamplingParams`, all but the seed."""
        ...

    def sleep(self) -> None:
        """Gives back the memory it can spare until it is used again."""
        ...

    def close(self) -> None:
        """Gives everything back; the engine is not used again."""
        ...


class StaleRolloutError(RuntimeError):
    """An engine would have generated with other weights than the live ones."""


class VLLMBackend:
    """
    Generates by vLLM with the weights that are being trained.

    Args:
        engine (`Engine`):
            Colocated or served; the backends of training and evaluation share one.
        weights (`LiveWeights`):
            The weights to generate with.
        decoding (`Decoding`):
            How to sample.
        eos_token_ids (`Sequence[int]`):
            Tokens that end a response; at least one. The end tokens of the model's configuration take no part.

    Attributes:
        counters (`dict[str, tuple[float, float]]`):
            What the last `generate` of this rank has for the log line.
    """

    def __init__(self, engine: Engine, weights: LiveWeights, decoding: Decoding, *, eos_token_ids: Sequence[int]):
        if not eos_token_ids:
            raise ValueError("VLLMBackend needs at least one end token: set tokenizer.eos_token.")
        self._engine = engine
        self._weights = weights
        self._ends = {int(t) for t in eos_token_ids}
        self._max_new_tokens = decoding.max_new_tokens
        self._knobs: dict[str, Any] = {
            "max_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "top_k": decoding.top_k,
            "min_p": decoding.min_p,
            "repetition_penalty": decoding.repetition_penalty,
            "stop_token_ids": sorted(self._ends),
            "ignore_eos": True,
        }
        self.counters: dict[str, tuple[float, float]] = {}

    def sync(self) -> None:
        """Hands the live weights to the engine, if they are others than it has; every rank calls it together."""
        if self._engine.version != self._weights.version:
            self._engine.load(self._weights)

    def generate(self, requests: Sequence[RolloutRequest]) -> list[Rollout]:
        """Returns one [`Rollout`] per request, in the order of the requests."""
        if self._engine.version != self._weights.version:
            if not requests:  # as in training on reference answers, which never hands over weights
                self.counters = {}
                return []
            raise StaleRolloutError(
                f"the engine has weights of version {self._engine.version}, but the live ones are of version "
                f"{self._weights.version}. Call sync() on every rank before generate()."
            )
        for i, request in enumerate(requests):
            self._check_length(i, len(request.prompt_ids))
        retries, start = self._engine.retries, time.perf_counter()
        answers = self._engine.generate(requests, self._knobs)
        seconds = time.perf_counter() - start
        for i, (request, answer) in enumerate(zip(requests, answers, strict=True)):
            _check_prompt(i, request.prompt_ids, answer.prompt_ids)
        self.counters = {
            "rollout/prefill_tokens": (float(sum(len(a.prompt_ids) for a in answers)), 1.0),
            "rollout/new_tokens_per_s": (float(sum(len(a.token_ids) for a in answers)), seconds),
            "rollout/engine_retries": (float(self._engine.retries - retries), 1.0),
        }
        return [self._cut(answer.token_ids) for answer in answers]

    def _check_length(self, i: int, prompt: int) -> None:
        if not prompt:
            raise ValueError(f"rollout request {i} has an empty prompt; a prompt needs at least one token.")
        if prompt + self._max_new_tokens > self._engine.max_model_len:
            raise ValueError(
                f"rollout request {i} has a prompt of {prompt} tokens and may get {self._max_new_tokens} more, but the "
                f"engine holds {self._engine.max_model_len}: vLLM would cut the response without a word. Raise "
                "max_model_len (rollout_matching.vllm, or --max-model-len of the server), or lower "
                "decoding.max_new_tokens."
            )

    def _cut(self, token_ids: list[int]) -> Rollout:
        """The response without its end token."""
        if token_ids and token_ids[-1] in self._ends:
            return Rollout(response_ids=token_ids[:-1], truncated=False)
        assert len(token_ids) == self._max_new_tokens, (len(token_ids), self._max_new_tokens)
        return Rollout(response_ids=token_ids, truncated=True)


def _check_prompt(i: int, ours: list[int], theirs: list[int]) -> None:
    if ours == theirs:
        return
    first = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    raise RuntimeError(
        f"rollout request {i}: vLLM read another prompt than it was given. They differ first at position {first}: "
        f"given {ours[first : first + 3]}, read {theirs[first : first + 3]} ({len(ours)} against {len(theirs)} "
        "tokens). Something between trainer and engine changes prompts; the response would belong to another sample."
    )
