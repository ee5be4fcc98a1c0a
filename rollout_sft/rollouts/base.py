"""What a rollout backend takes and gives: token ids in, token ids exactly as generated out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutRequest:
    """
    One prompt to continue.

    Args:
        prompt_ids (`list[int]`):
            The prompt's token ids, as the model shall read them.
        seed (`int`):
            Seed of this request alone, so that its sample does not depend on what it is batched with.
    """

    prompt_ids: list[int]
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """
    One response.

    Args:
        response_ids (`list[int]`):
            Token ids exactly as generated, without the end token and without padding; never re-encoded text.
        truncated (`bool`):
            True when `max_new_tokens` was reached before an end token.
    """

    response_ids: list[int]
    truncated: bool


class RolloutBackend(Protocol):
    """Generates responses from the live model. Rollouts are never packed."""

    def generate(self, requests: Sequence[RolloutRequest]) -> list[Rollout]:
        """
        Returns one [`Rollout`] per request, in the order of the requests.

        Every rank calls it at the same point, with no requests where it has none, so it may use collectives.
        """
        ...


@runtime_checkable
class SyncedBackend(RolloutBackend, Protocol):
    """A backend that generates with a copy of the weights."""

    def sync(self) -> None:
        """Renews the copy if the weights have changed; every rank calls it at the same point."""
        ...
