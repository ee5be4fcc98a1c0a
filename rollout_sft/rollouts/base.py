"""Says what a rollout backend takes and gives: token ids in, token ids exactly as generated out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from rollout_sft.inputs.images import Image
from rollout_sft.reporting.metrics import Counters


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutRequest:
    """
    Holds one prompt to continue.

    Args:
        prompt_ids (`list[int]`):
            The token ids that the model reads as the prompt.
        seed (`int`):
            Seed of this request alone, so that its sample does not depend on the other requests of its batch.
        images (`tuple[Image, ...]`, *optional*):
            The images of the prompt, in the order of their tokens. `prompt_ids` hold all tokens that the model reads
            for them.
    """

    prompt_ids: list[int]
    seed: int
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """
    Holds one response.

    Args:
        response_ids (`list[int]`):
            Token ids exactly as generated, without the end token and without padding; never re-encoded text.
        truncated (`bool`):
            True when `max_new_tokens` was reached before an end token.
        prompt_ids (`list[int]`, *optional*):
            The prompt that the backend read, if it knows; refused when it differs from the request's prompt.
        origin (`str`, *optional*, defaults to `""`):
            Where the response was generated, for messages: the address of a server.
    """

    response_ids: list[int]
    truncated: bool
    prompt_ids: list[int] | None = field(default=None, compare=False, repr=False)
    origin: str = field(default="", compare=False, repr=False)


class RolloutBackend(Protocol):
    """
    Generates responses from the live model. Rollouts are never packed.

    Attributes:
        counters (`Counters`):
            Log values of this rank's last `generate`; `{}` when there are none.
    """

    counters: Counters

    def generate(self, requests: Sequence[RolloutRequest]) -> list[Rollout]:
        """
        Returns one [`Rollout`] per request, in the order of the requests.

        Every rank calls it at the same point, with no requests where it has none, so it may use collectives.
        """
        ...


@runtime_checkable
class SyncedBackend(RolloutBackend, Protocol):
    """Generates with a copy of the weights."""

    def sync(self) -> None:
        """Renews the copy if the weights have changed; every rank calls it at the same point."""
        ...


def check_backend(backend: object) -> None:
    """Raises `ValueError` for an object that is not a [`RolloutBackend`], and names the missing attributes."""
    name = backend.__name__ if isinstance(backend, type) else type(backend).__name__
    if isinstance(backend, type):
        raise ValueError(f"rollout_backend is the class {name}; give an instance of it.")
    lacking = [attribute for attribute in ("generate", "counters") if not hasattr(backend, attribute)]
    if lacking:
        raise ValueError(
            f"rollout_backend is a {name} without {' and '.join(lacking)}. A RolloutBackend has "
            "generate(requests) -> list[Rollout], and counters: what its last call has for the log line, or {}."
        )


def check_prompts(requests: Sequence[RolloutRequest]) -> None:
    """Raises `ValueError` for a request with an empty prompt, and names it by its place."""
    for i, request in enumerate(requests):
        if not request.prompt_ids:
            raise ValueError(f"rollout request {i} has an empty prompt; a prompt needs at least one token.")
