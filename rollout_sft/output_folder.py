"""Refuses to start a new run in a folder that holds the results of another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rollout_sft.config.sections import StageConfig

_RESULTS = ("checkpoint-*", "summary.json", "*.safetensors", "*.bin")
"""What takes long to make again. A log alone is replaced: a run that was stopped in its first steps has one."""


class OutputFolderInUseError(ValueError):
    """Raised when a new run would replace the results of another one."""


def check_output_folders(stages: Sequence[StageConfig]) -> None:
    """
    Refuses a run that would replace results, before anything is loaded.

    Args:
        stages (`Sequence[StageConfig]`):
            The stages of the run; one that resumes, or sets `overwrite_output_dir`, is not looked at.

    Raises:
        [`OutputFolderInUseError`]: the folder of a stage holds a model or checkpoints.
    """
    for problem in find_folders_in_use(stages):
        raise OutputFolderInUseError(problem)


def find_folders_in_use(stages: Sequence[StageConfig]) -> Iterator[str]:
    """Yields a message for each stage whose folder holds results that it would replace."""
    for stage in stages:
        args = stage.training
        if args.resume_from_checkpoint or args.overwrite_output_dir:
            continue
        folder = Path(str(args.output_dir))
        held = sorted(path.name for pattern in _RESULTS for path in folder.glob(pattern))
        if held:
            more = f" and {len(held) - 3} more" if len(held) > 3 else ""
            yield (
                f"training.output_dir: {folder} holds the results of an earlier run ({', '.join(held[:3])}{more}), "
                "which this run would replace. Name another folder, set training.resume_from_checkpoint: true to "
                "continue that run, or training.overwrite_output_dir: true to replace it."
            )
