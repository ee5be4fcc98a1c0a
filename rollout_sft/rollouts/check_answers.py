"""Checks what a backend answered, once, before anything is made of it: the same checks for every backend.

A wrong id would otherwise be trained in silence, or fail far from its cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rollout_sft.rollouts.base import Rollout, RolloutRequest
from rollout_sft.rollouts.endings import Endings


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerLimits:
    """
    Limits the answers of one decoding.

    Args:
        vocab_size (`int`):
            Token ids are smaller than it.
        max_new_tokens (`int`):
            The most tokens of a response.
        end_ids (`frozenset[int]`):
            Tokens that end a response; they are not part of it.
        media_token_ids (`frozenset[int]`, *optional*):
            Tokens that stand for an image or another medium; the model would look for its pixels.
        endings (`Endings`, *optional*):
            Where responses end early, for a backend that does not know it.
    """

    vocab_size: int
    max_new_tokens: int
    end_ids: frozenset[int]
    media_token_ids: frozenset[int] = frozenset()
    endings: Endings | None = None


class AnswerError(ValueError):
    """
    Raised when a backend's answer cannot be trained on or scored.

    Args:
        index (`int`):
            The request that it answers.
        origin (`str`):
            Where the answer came from; may be empty.
        problem (`str`):
            What is wrong with it.
    """

    def __init__(self, index: int, origin: str, problem: str):
        answered = f", answered by {origin}" if origin else ""
        super().__init__(f"rollout request {index}{answered}: {problem}")
        self.index = index
        self.origin = origin


def checked(
    rollouts: Any, requests: Sequence[RolloutRequest], limits: AnswerLimits, *, indices: Sequence[int] | None = None
) -> list[Rollout]:
    """
    Returns the rollouts, ended early where the limits say so, if they can answer the requests.

    The checks cost about 25 ns per token.

    Args:
        rollouts (`Any`):
            The result of `RolloutBackend.generate`; it may be anything.
        requests (`Sequence[RolloutRequest]`):
            What it was asked.
        limits (`AnswerLimits`):
            What answers can be.
        indices (`Sequence[int]`, *optional*):
            The index of each request among all that were asked, where these are some of them.

    Raises:
        [`AnswerError`]: an answer is not a [`Rollout`] of plain token ids within the limits, or the backend read
            another prompt than it was given.
        `ValueError`: there are more or fewer answers than requests.
    """
    if not isinstance(rollouts, list | tuple):
        raise ValueError(
            f"the rollout backend returned {_kind(rollouts)} for {len(requests)} requests; it returns a list with one "
            "Rollout per request, in their order."
        )
    if len(rollouts) != len(requests):
        raise ValueError(
            f"the rollout backend returned {len(rollouts)} rollouts for {len(requests)} requests; it returns one per "
            "request, in their order."
        )
    for i, rollout, request in zip(indices or range(len(requests)), rollouts, requests, strict=True):
        if not isinstance(rollout, Rollout):
            raise AnswerError(i, "", f"the backend returned {_kind(rollout)}; it returns a Rollout for every request.")
        problem = _problem(rollout, request, limits)
        if problem:
            raise AnswerError(i, rollout.origin, problem)
    return [limits.endings.cut(rollout) for rollout in rollouts] if limits.endings else list(rollouts)


def _problem(rollout: Rollout, request: RolloutRequest, limits: AnswerLimits) -> str:
    """Says what is wrong with an answer; empty if nothing is."""
    ids = rollout.response_ids
    if not isinstance(ids, list):
        return f"response_ids is {_kind(ids)}; it takes a list of integers."
    if not isinstance(rollout.truncated, bool):
        return f"truncated is {_kind(rollout.truncated)}; it takes True or False."
    if len(ids) > limits.max_new_tokens:
        return (
            f"the response has {len(ids)} tokens, but decoding.max_new_tokens is {limits.max_new_tokens}. Limit the "
            "backend to it, or raise it."
        )
    if not set(map(type, ids)) <= {int}:
        n = next(n for n, token in enumerate(ids) if type(token) is not int)
        return f"position {n} of the response holds {_kind(ids[n])}; token ids are plain integers."
    if ids and not (min(ids) >= 0 and max(ids) < limits.vocab_size):
        n = next(n for n, token in enumerate(ids) if not 0 <= token < limits.vocab_size)
        return (
            f"position {n} of the response holds the token {_number(ids[n])}, which is not in the model's vocabulary "
            f"of {limits.vocab_size} tokens. Does the backend serve the model that is trained?"
        )
    if not limits.end_ids.isdisjoint(ids):
        n = next(n for n, token in enumerate(ids) if token in limits.end_ids)
        return (
            f"position {n} of {len(ids)} of the response holds the end token {ids[n]}; a response stops before its "
            "first end token."
        )
    if not limits.media_token_ids.isdisjoint(ids):
        n = next(n for n, token in enumerate(ids) if token in limits.media_token_ids)
        return (
            f"position {n} of {len(ids)} of the response holds the token {ids[n]}, which stands for an image or a "
            "video, and there is none. Ban it where the response is generated."
        )
    if rollout.prompt_ids is not None and rollout.prompt_ids != request.prompt_ids:
        return _other_prompt(request.prompt_ids, rollout.prompt_ids)
    return ""


def _other_prompt(ours: list[int], theirs: list[int]) -> str:
    shorter = min(len(ours), len(theirs))
    first = next((n for n in range(shorter) if ours[n] != theirs[n]), shorter)
    read = ", ".join(_number(token) for token in theirs[first : first + 3])
    return (
        f"the backend read another prompt than it was given. They differ first at position {first}: given "
        f"{ours[first : first + 3]}, read [{read}] ({len(ours)} against {len(theirs)} tokens). Something between "
        "trainer and engine changes prompts; the response would belong to another sample."
    )


def _kind(value: Any) -> str:
    """Names the type of a value, and the value where that is short for certain."""
    name = type(value).__name__
    return f"{name} {value!r}" if isinstance(value, bool | float) else f"a {name}" if value is not None else "None"


def _number(value: int) -> str:
    """Writes an integer; Python refuses to write very long ones."""
    return str(value) if value.bit_length() <= 80 else f"of {value.bit_length()} bits"
