"""Generates rollouts with a vLLM engine.

    colocate   an engine in every rank's process (`colocated`)
    server     vLLM servers that were started beforehand (`server`)

Both get the live model's weights once per optimizer step, before the window's one `generate`, and refuse to generate
with any others. vLLM itself is imported inside functions only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rollout_sft.config.decoding import Decoding
from rollout_sft.inputs.base import InputAdapter
from rollout_sft.inputs.text import TextInputs
from rollout_sft.rollouts.base import Rollout, RolloutRequest
from rollout_sft.rollouts.check_answers import AnswerError
from rollout_sft.rollouts.endings import Endings, Watch, ended
from rollout_sft.rollouts.live_weights import LiveWeights
from rollout_sft.rollouts.vllm import image_prompts


@dataclass(frozen=True, slots=True)
class Answer:
    """
    Holds an engine's answer to one request.

    Args:
        prompt_ids (`list[int]`):
            The prompt that it read.
        token_ids (`list[int]`):
            What it generated, with the end token; less where the response ended early.
        origin (`str`, *optional*, defaults to `""`):
            The server that generated it.
        finish_reason (`str`, *optional*):
            Why it ended: `stop` and `length`, or None where the request was ended early; all else is refused.
    """

    prompt_ids: list[int]
    token_ids: list[int]
    origin: str = ""
    finish_reason: str | None = None


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
        """Copies the live weights into the engine. Every rank calls it at the same point, and all fail together."""
        ...

    def generate(
        self, requests: Sequence[RolloutRequest], knobs: Mapping[str, Any], watch: Callable[[], Watch] | None = None
    ) -> list[Answer]:
        """
        Returns one answer per request; `knobs` are all fields of vLLM's `SamplingParams` but the seed.

        With `watch`, which makes what follows one response, a request ends soon after that gives a number.
        """
        ...

    def sleep(self) -> None:
        """Frees the memory that it does not need until it is used again."""
        ...

    def close(self) -> None:
        """Frees everything; the engine is not used again."""
        ...


class VLLMBackend:
    """
    Generates with vLLM from the weights that are being trained.

    Args:
        engine (`Engine`):
            Colocated or served; the training and evaluation backends share one.
        weights (`LiveWeights`):
            The weights to generate with.
        decoding (`Decoding`):
            How to sample.
        eos_token_ids (`Sequence[int]`):
            Tokens that end a response; at least one. Those of the model's configuration are not used.
        inputs (`InputAdapter`, *optional*):
            Names the tokens that stand for media, which no response may hold.
        endings (`Endings`, *optional*):
            Where responses end early; nowhere when not given.

    Attributes:
        counters (`dict[str, tuple[float, float]]`):
            What the last `generate` of this rank adds to the log line.
    """

    def __init__(
        self,
        engine: Engine,
        weights: LiveWeights,
        decoding: Decoding,
        *,
        eos_token_ids: Sequence[int],
        inputs: InputAdapter | None = None,
        endings: Endings | None = None,
    ):
        if not eos_token_ids:
            raise ValueError("VLLMBackend needs at least one end token: set tokenizer.eos_token.")
        self._engine = engine
        self._weights = weights
        self._ends = {int(t) for t in eos_token_ids}
        self._endings = endings
        self._watch = endings.watch if endings else None
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
            **image_prompts.banned(inputs or TextInputs()),
        }
        self.counters: dict[str, tuple[float, float]] = {}

    def sync(self) -> None:
        """Copies the live weights into the engine if they have changed; every rank calls it together."""
        if self._engine.version != self._weights.version:
            self._engine.load(self._weights)

    def generate(self, requests: Sequence[RolloutRequest]) -> list[Rollout]:
        """Returns one [`Rollout`] per request, in the order of the requests."""
        if not self._check(requests):
            return []
        retries, start = self._engine.retries, time.perf_counter()
        answers = self._engine.generate(requests, self._knobs, self._watch)
        self._count(answers, time.perf_counter() - start, retries)
        return [self._cut(i, answer) for i, answer in enumerate(answers)]

    def _check(self, requests: Sequence[RolloutRequest]) -> bool:
        """Checks the requests and the weights; returns False where there is nothing to do and may be no weights."""
        if not requests and self._engine.version != self._weights.version:
            self.counters = {}  # as in training on reference answers, which never hands over weights
            return False
        self._weights.require(self._engine.version)
        for i, request in enumerate(requests):
            self._check_length(i, len(request.prompt_ids))
        return True

    def _count(self, answers: Sequence[Answer], seconds: float, retries: int) -> None:
        """Sets the counters; `retries` is the engine's number before anything was asked."""
        self.counters = {
            "rollout/prefill_tokens": (float(sum(len(a.prompt_ids) for a in answers)), 1.0),
            "rollout/new_tokens_per_s": (float(sum(len(a.token_ids) for a in answers)), seconds),
            "rollout/engine_retries": (float(self._engine.retries - retries), 1.0),
        }

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

    def _cut(self, i: int, answer: Answer) -> Rollout:
        """Takes the end token off the response; without one it must be as long as it can be, or end early."""
        if answer.finish_reason not in (None, "stop", "length"):
            raise AnswerError(
                i,
                answer.origin,
                f"the response ended with finish_reason {answer.finish_reason!r} after {len(answer.token_ids)} tokens, "
                "so it is not whole. The engine gave up or was interrupted; look into its log.",
            )
        ids, truncated = answer.token_ids, True
        if ids and ids[-1] in self._ends:
            ids, truncated = ids[:-1], False
        end = self._endings.ends_at(ids) if self._endings else None
        if truncated and end is None and len(ids) < self._max_new_tokens:
            raise AnswerError(
                i,
                answer.origin,
                f"the response stops after {len(ids)} of {self._max_new_tokens} tokens without an end token. The "
                "engine gave up or was interrupted; look into its log.",
            )
        rollout = Rollout(response_ids=ids, truncated=truncated, prompt_ids=answer.prompt_ids, origin=answer.origin)
        return rollout if end is None else ended(rollout, end)
