"""Counts what becomes of generated tokens: how many reach a segment, and how many positions train."""

from __future__ import annotations

import numpy as np

from rollout_sft.inputs.segment import SUPERVISED, Segment
from rollout_sft.reporting.metrics import Counters
from rollout_sft.rollouts.base import Rollout


class TokenFlow:
    """
    Counts the tokens of a window.

    Args:
        ranks (`int`):
            How many ranks count; the log shows the sum over all of them, per optimizer step.
    """

    def __init__(self, ranks: int):
        self._ranks = ranks
        self._clear()

    def _clear(self) -> None:
        self._counts = dict.fromkeys(("tokens/generated", "tokens/kept", "tokens/trained"), 0)

    def add(self, prompt_ids: list[int], rollout: Rollout | None, segment: Segment) -> None:
        """Adds one sample; `rollout` is None where it is trained on its reference answer."""
        self._counts["tokens/trained"] += segment.indices[SUPERVISED].numel()
        if rollout is not None:
            self._counts["tokens/generated"] += len(rollout.response_ids)
            self._counts["tokens/kept"] += _common(segment.input_ids[len(prompt_ids) :].numpy(), rollout.response_ids)

    def take(self) -> Counters:
        """Returns the counts since the last call, for the log."""
        counters = {name: (float(count), 1 / self._ranks) for name, count in self._counts.items()}
        self._clear()
        return counters


def _common(ids: np.ndarray, response: list[int]) -> int:
    """Returns how many leading tokens are equal."""
    n = min(len(ids), len(response))
    different = np.flatnonzero(ids[:n] != np.asarray(response[:n], dtype=ids.dtype))
    return int(different[0]) if len(different) else n
