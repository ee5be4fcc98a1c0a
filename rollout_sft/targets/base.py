"""From a sample and what the model answered to the segment that is trained on."""

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
