"""Refuses to start a new run in a folder that holds the results of another one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rollout_sft.config.sections import StageConfig

_RESULTS = ("checkpoint-*", "summary.json", "*.safetensors", "*.bin")
"""What takes long to make again. A log alone is replaced: a run that was stopped in its first steps has one."""


class OutputFolderError(ValueError):
    """Raised when a new run would replace the results of another one, or when a folder cannot be used."""


def check_output_folders(stages: Sequence[StageConfig]) -> None:
    """
    Refuses a run that would replace results, or whose folders cannot be used, before anything is loaded.

    Args:
        stages (`Sequence[StageConfig]`):
            The stages of the run; one that resumes, or sets `overwrite_output_dir`, is not looked at.

    Raises:
        [`OutputFolderError`]: the folder of a stage holds a model or checkpoints, or is none.
    """
    for problem in find_folder_problems(stages):
        raise OutputFolderError(problem)


def find_folder_problems(stages: Sequence[StageConfig]) -> Iterator[str]:
    """Yields a message for each stage whose folder holds results that it would replace, or cannot be used."""
    for stage in stages:
        args = stage.training
        folder, resume = Path(str(args.output_dir)), args.resume_from_checkpoint
        if folder.is_file():
            yield f"training.output_dir: {folder} is a file; give the path of a folder."
        if isinstance(resume, str) and not Path(resume).is_dir():
            yield f"training.resume_from_checkpoint is {resume}: no such folder; the path is taken from {os.getcwd()}."
        if resume or args.overwrite_output_dir:
            continue
        held = sorted(path.name for pattern in _RESULTS for path in folder.glob(pattern))
        if held:
            more = f" and {len(held) - 3} more" if len(held) > 3 else ""
            yield (
                f"training.output_dir: {folder} holds the results of an earlier run ({', '.join(held[:3])}{more}), "
                "which this run would replace. Name another folder, set training.resume_from_checkpoint: true to "
                "continue that run, or training.overwrite_output_dir: true to replace it."
            )
