"""Hands out rollouts of vLLM servers while others are still generated."""

from __future__ import annotations

from collections.abc import Sequence

from rollout_sft.rollouts.base import RolloutRequest
from rollout_sft.rollouts.vllm.backend import VLLMBackend
from rollout_sft.rollouts.vllm.server import ServerEngine
from rollout_sft.rollouts.vllm.streaming import ServedRollouts


class ServedBackend(VLLMBackend):
    """
    Generates with vLLM servers, and implements [`~rollout_sft.rollouts.base.StreamingBackend`].

    Its arguments are those of [`~rollout_sft.rollouts.vllm.backend.VLLMBackend`], with a [`ServerEngine`].
    """

    _engine: ServerEngine

    def begin(self, requests: Sequence[RolloutRequest]) -> ServedRollouts:
        """See [`~rollout_sft.rollouts.base.StreamingBackend`]. Every `wait` renews the counters."""
        self._check(requests)
        retries = self._engine.retries
        return self._engine.begin(
            requests,
            self._knobs,
            self._cut,
            watch=self._watch,
            report=lambda answers, seconds: self._count(answers, seconds, retries),
        )
