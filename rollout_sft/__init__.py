"""Rollout-matching SFT on Hugging Face's `Trainer`, packed by `packsched`."""

from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.data.samples import Sample
from rollout_sft.inputs.segment import Segment
from rollout_sft.reporting.metrics import Counters
from rollout_sft.rollouts.base import Rollout, RolloutBackend, RolloutRequest
from rollout_sft.targets.base import Target, TargetBuilder
from rollout_sft.trainer import RolloutSFTTrainer

__all__ = [
    "Counters",
    "Rollout",
    "RolloutBackend",
    "RolloutRequest",
    "RolloutSFTConfig",
    "RolloutSFTTrainer",
    "Sample",
    "Segment",
    "Target",
    "TargetBuilder",
]
