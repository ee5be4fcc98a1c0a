"""Compares a run with the one that it resumes, before anything runs or is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rollout_sft.checkpoint.data_fingerprint import fingerprint
from rollout_sft.checkpoint.described_parts import digest_base
from rollout_sft.checkpoint.manifest import read_finished
from rollout_sft.checkpoint.settings import check_changes, trained_with
from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.ranks.distributed import is_sharded, together

_PARTS = {
    "the optimizer's state": ("optimizer*", "global_step*"),
    "the random generators' states": ("rng_state*",),
}
"""What a checkpoint holds besides weights, and its files; DeepSpeed's are in a folder of the step."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """
    Holds what a run is trained with, and what of it differs from the run that it resumes.

    Args:
        source (`str`, *optional*):
            The checkpoint, or the folder of the finished run, that it was compared with; None for a new run.
        trained_with (`dict`):
            The settings that every checkpoint holds.
        changed (`frozenset[str]`):
            Settings that may differ, and do.
    """

    source: str | None
    trained_with: dict[str, Any]
    changed: frozenset[str] = frozenset()


def compare(
    config: RolloutSFTConfig,
    model: nn.Module,
    parts: Mapping[str, Any],
    dataset: Any,
    source: str | None,
    saved: dict[str, Any] | None = None,
) -> Comparison:
    """
    Describes a run, and refuses to resume another one; every rank calls it at the same point.

    Reads every file of the checkpoint, the training data and the weights below an adapter: about 0.1 s a GB of files
    and weights.

    Args:
        config (`RolloutSFTConfig`):
            The run's arguments.
        model (`nn.Module`):
            The unwrapped model.
        parts (`Mapping[str, Any]`):
            The result of [`~rollout_sft.checkpoint.described_parts.describe_parts`].
        dataset (`Dataset`):
            The training data.
        source (`str`, *optional*):
            The checkpoint to resume from, or the folder of a finished run; None only describes.
        saved (`dict`, *optional*):
            What `source` was trained with; read from the checkpoint when not given.

    Raises:
        `ValueError`: the checkpoint is not finished, or damaged.
        [`~rollout_sft.checkpoint.settings.ChangedSettingsError`]: it belongs to a run with other settings.
    """

    def describe() -> tuple[dict[str, str] | None, str | None]:
        first = config.process_index == 0
        digest = digest_base(model) if first or is_sharded(model) else None  # DDP gives every rank the first one's
        return fingerprint(dataset) if first else None, digest

    _, found = together(describe, share=lambda described: described)
    digests = [digest for _, digest in found if digest is not None]
    base = {"model.base_weights": " + ".join(digests)} if digests else {}
    now = trained_with(config, {**parts, **base}, found[0][0])

    def check() -> frozenset[str]:
        if source is None:
            return frozenset()
        before = saved
        if before is None:
            before = read_finished(source, contents=config.should_save)  # every machine reads the files once
            _reject_weights_alone(source)
        return frozenset() if before is None else check_changes(source, before, now, config.resume_with_changes)

    changed, _ = together(check, share=lambda _: None)
    return Comparison(source=source, trained_with=now, changed=changed)


def _reject_weights_alone(checkpoint: str) -> None:
    """Refuses a checkpoint from which the Trainer would restore the weights and, without a word, nothing else."""
    for part, patterns in _PARTS.items():
        if not any(True for pattern in patterns for _ in Path(checkpoint).glob(pattern)):
            raise ValueError(
                f"{checkpoint} does not hold {part}: training.save_only_model saved it, or files were removed. Nothing "
                "can be resumed from it; start a new run from its weights, with this folder as "
                "model.model_name_or_path."
            )
