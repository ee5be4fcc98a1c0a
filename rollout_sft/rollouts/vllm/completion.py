"""Collects the events of one completion, and refuses every event that is not in its place.

The first event holds the prompt, every event the tokens since the one before, the last event of tokens says why they
end, and `[DONE]` ends the stream. A server that fails in the middle sends an event with the error instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import FailFast, Field

from rollout_sft.rollouts.vllm.http import Reply, ServerError, excerpt, parse

Ids = Annotated[list[int], FailFast()]


class _Choice(Reply):
    token_ids: Ids
    finish_reason: str | None


class _FirstChoice(_Choice):
    prompt_token_ids: Ids


class _First(Reply):
    hint = "It takes vLLM 0.30 or newer to serve rollouts."
    choices: Annotated[list[_FirstChoice], Field(min_length=1, max_length=1)]


class _FirstOfImages(Reply):
    hint = "It takes vLLM 0.30 or newer to serve rollouts of an image model."
    prompt_token_ids: Ids
    choices: Annotated[list[_Choice], Field(min_length=1, max_length=1)]


class _LaterChoice(_Choice):
    prompt_token_ids: None = None


class _Later(Reply):
    prompt_token_ids: None = None
    choices: Annotated[list[_LaterChoice], Field(min_length=1, max_length=1)]


class _Usage(Reply):
    choices: Annotated[list[None], Field(max_length=0)]


class _Problem(Reply):
    message: str
    code: int


class _Failure(Reply):
    error: _Problem


def check_finish(reason: str | None, what: str) -> None:
    """Raises [`ServerError`] for a response that neither ended nor reached its most tokens: "abort", "error", ..."""
    if reason not in (None, "stop", "length"):
        raise ServerError(f"{what} ended with finish_reason {excerpt(reason, 100)!r}, so it is not whole.", again=True)


class Completion:
    """
    Holds what has arrived of one completion.

    Args:
        server (`str`):
            The address of the server.
        path (`str`):
            Its route.
        max_tokens (`int`):
            The most tokens that were asked for.
        enough (`Callable[[list[int]], bool]`):
            Called with all tokens so far whenever some have arrived; True ends the request.

    Attributes:
        address (`str`):
            Server and route, for messages.
        prompt_ids (`list[int]`):
            The prompt that the server read.
        token_ids (`list[int]`):
            The tokens so far; the last may be an end token.
    """

    def __init__(self, server: str, path: str, max_tokens: int, enough: Callable[[list[int]], bool]):
        self.server = server
        self.address = f"{server}{path}"
        self.prompt_ids: list[int] = []
        self.token_ids: list[int] = []
        self._max_tokens = max_tokens
        self._enough = enough
        self._shape: type[_First | _FirstOfImages | _Later | _Usage]
        self._shape = _FirstOfImages if path.endswith("/generate") else _First

    def take(self, data: bytes) -> bool:
        """Adds the data of one event; returns True when no more is needed. Raises [`ServerError`]."""
        if data == b"[DONE]":
            if self._shape is not _Usage:
                raise ServerError(f"{self.address} ended its answer before the last token.", again=True)
            return True
        if data.startswith(b'{"error"'):
            problem = parse(_Failure, self.address, data).error
            raise ServerError(
                f"{self.address} answered {problem.code}: {excerpt(problem.message, 600)}",
                again=problem.code >= 500,
            )
        event = parse(self._shape, self.address, data)
        if isinstance(event, _Usage):
            return False
        choice: _Choice = event.choices[0]
        if isinstance(event, _First):
            self.prompt_ids = event.choices[0].prompt_token_ids
        elif isinstance(event, _FirstOfImages):
            self.prompt_ids = event.prompt_token_ids
        self.token_ids += choice.token_ids
        if len(self.token_ids) > self._max_tokens:
            raise ServerError(
                f"{self.address}: the response has {len(self.token_ids)} tokens, but {self._max_tokens} were asked for."
            )
        check_finish(choice.finish_reason, f"{self.address}: the response")
        self._shape = _Later if choice.finish_reason is None else _Usage
        return self._shape is _Later and self._enough(self.token_ids)
