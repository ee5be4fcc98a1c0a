"""Asks a backend for the rollouts of one window, and hands them out in one wave or in several."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from rollout_sft.data.samples import Sample
from rollout_sft.rollouts.base import Rollout, RolloutBackend, RolloutRequest, StreamedRollouts, StreamingBackend
from rollout_sft.rollouts.check_answers import AnswerLimits, checked
from rollout_sft.targets.notes import noted


class AskedRollouts:
    """
    Holds the requests of one window.

    Args:
        backend (`RolloutBackend`):
            Generates the rollouts.
        requests (`Sequence[RolloutRequest]`):
            One per sample that needs a rollout.
        samples (`Sequence[Sample]`):
            These samples, for messages.
        limits (`AnswerLimits`):
            What the answers can be; any other answer is refused.
        in_waves (`bool`):
            Whether the rollouts start at once and are handed out while others are still generated. If not, [`wait`]
            generates all of them.
    """

    def __init__(
        self,
        backend: RolloutBackend,
        requests: Sequence[RolloutRequest],
        samples: Sequence[Sample],
        limits: AnswerLimits,
        *,
        in_waves: bool,
    ):
        self._backend = backend
        self._requests = requests
        self._samples = samples
        self._limits = limits
        self._missing = set(range(len(requests)))
        self._stream: StreamedRollouts | None = None
        if in_waves:
            assert isinstance(backend, StreamingBackend), backend
            with self._noted():
                self._stream = backend.begin(requests)

    def wait(self, tokens: int | None) -> dict[int, Rollout]:
        """
        Waits for the next wave.

        Args:
            tokens (`int`, *optional*):
                The longest response of the wave; None for all that are left.

        Returns:
            `dict[int, Rollout]`: the wave's rollouts by the index of their request, ascending.
        """
        with self._noted():
            if self._stream is None:
                assert tokens is None
                return dict(enumerate(checked(self._backend.generate(self._requests), self._requests, self._limits)))
            found = self._stream.wait(tokens)
            ended = sorted(found)
            if not self._missing.issuperset(ended) or (tokens is None and len(ended) < len(self._missing)):
                raise ValueError(
                    f"the rollout backend answered requests {ended}, but it was waiting for "
                    f"{'all' if tokens is None else 'some'} of {sorted(self._missing)}; StreamedRollouts.wait returns "
                    "each response once."
                )
            self._missing.difference_update(ended)
            requests = [self._requests[i] for i in ended]
            rollouts = checked([found[i] for i in ended], requests, self._limits, indices=ended)
            return dict(zip(ended, rollouts, strict=True))

    def close(self) -> None:
        """Ends the rollouts that are under way."""
        if self._stream is not None:
            self._stream.close()

    def _noted(self) -> AbstractContextManager[None]:
        return noted(f"while the rollout backend answered {len(self._samples)} samples: {names(self._samples)}")


def names(samples: Sequence[Sample]) -> str:
    """Lists the ids of samples; at most eight."""
    named = ", ".join(repr(sample.get("id")) for sample in samples[:8])
    return f"{named} and {len(samples) - 8} more" if len(samples) > 8 else named
