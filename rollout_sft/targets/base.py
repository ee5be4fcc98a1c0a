"""From a sample and what the model answered to the segment that is trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rollout_sft.inputs.segment import Segment
from rollout_sft.rollouts.base import Rollout

Sample = Mapping[str, Any]
"""One item of the data set: `id` (str) and `prompt_ids` (list[int]) are read by the trainer, the rest (such as
`objects`) by the target builder."""

Counters = dict[str, tuple[float, float]]
"""Metric name -> (numerator, denominator); pairs are summed over samples, micro-steps and ranks, then divided."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """
    What one sample contributes to training.

    Args:
        segment (`Segment`):
            Prompt plus `Y_train`, on the CPU.
        counters (`Counters`):
            What was seen on the way: matches, parse failures, lengths.
    """

    segment: Segment
    counters: Counters


class TargetBuilder(Protocol):
    """Builds segments; selected by `rollout_matching.target_builder` (a name or an import path)."""

    def build(self, sample: Sample, rollout: Rollout) -> Target:
        """The training target for `sample`, given the model's own `rollout`."""
        ...

    def build_reference(self, sample: Sample) -> Target:
        """The training target made of the full reference answer, without a rollout."""
        ...

    def score(self, sample: Sample, rollout: Rollout) -> Counters:
        """What evaluation reports about `rollout`; builds no segment."""
        ...
