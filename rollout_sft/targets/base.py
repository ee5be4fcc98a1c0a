"""Defines target builders, which turn a sample and the model's answer into the segment that is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rollout_sft.data.samples import Sample
from rollout_sft.inputs.segment import Segment
from rollout_sft.reporting.metrics import Counters
from rollout_sft.rollouts.base import Rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """
    Holds what one sample contributes to training.

    Args:
        segment (`Segment`):
            Prompt plus `Y_train`, on the CPU.
        counters (`Counters`):
            Numbers for the log: matches, parse failures, lengths.
    """

    segment: Segment
    counters: Counters


class TargetBuilder(Protocol):
    """Builds segments; selected by `rollout_matching.target_builder` (a name or an import path)."""

    def build(self, sample: Sample, rollout: Rollout) -> Target:
        """Builds the training target for `sample` from the model's `rollout`."""
        ...

    def build_reference(self, sample: Sample) -> Target:
        """Builds the training target from the full reference answer, without a rollout."""
        ...

    def score(self, sample: Sample, rollout: Rollout) -> Counters:
        """Returns the numbers that evaluation reports about `rollout`; builds no segment."""
        ...
