"""Looks into the output folder before a run: where it goes on, and whether it would replace the results of another."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout_sft.checkpoint.atomic_files import write_atomically
from rollout_sft.checkpoint.manifest import last_finished_checkpoint
from rollout_sft.checkpoint.settings import how_long
from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.config.sections import StageConfig
from rollout_sft.reporting.summary import SUMMARY_FILE, Numbers

logger = logging.getLogger(__name__)

_TRAINED_WITH = "trained_with"
_RESULTS = ("checkpoint-*", SUMMARY_FILE, "*.safetensors", "*.bin")
"""What takes long to make again. A log alone is replaced: a run that was stopped in its first steps has one."""


class OutputFolderError(ValueError):
    """Raised when a new run would replace the results of another one, or when a folder cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """
    Says where a stage starts.

    Args:
        source (`str`, *optional*):
            The checkpoint that it resumes from, or its folder if it is finished; None for the beginning.
        saved (`dict`, *optional*):
            What a finished stage was trained with; None where that is in the checkpoint.
        numbers (`Numbers`, *optional*):
            The numbers of a finished stage, in which nothing is left to train.
    """

    source: str | None = None
    saved: dict[str, Any] | None = None
    numbers: Numbers | None = None


def find_start(args: RolloutSFTConfig) -> Start:
    """
    Finds where a stage starts: at its end, at a checkpoint, or at the beginning.

    Args:
        args (`RolloutSFTConfig`):
            Gives `output_dir`, `resume_from_checkpoint`, `max_steps` and `num_train_epochs`.

    Raises:
        [`OutputFolderError`]: the stage is finished, its end was moved, and there is no checkpoint to go on from.
    """
    folder, resume = Path(str(args.output_dir)), args.resume_from_checkpoint
    if not resume:
        return Start()
    checkpoint = last_finished_checkpoint(folder) if resume is True else resume
    summary = folder / SUMMARY_FILE
    if summary.is_file():
        numbers: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
        saved = numbers.pop(_TRAINED_WITH, None)
        if saved is None or saved["how_long"] == how_long(args):
            return Start(source=str(folder), saved=saved, numbers=numbers)
        if checkpoint is None:
            raise OutputFolderError(
                f"{folder} holds a run that ended with {_told(saved['how_long'])}, and no checkpoint from which it "
                f"could go on to {_told(how_long(args))}. Set them back, or give {folder} as "
                "model.model_name_or_path of a run with another output_dir."
            )
    if checkpoint is None:
        logger.info("%s holds no finished checkpoint: it starts from the beginning.", folder)
    return Start(source=checkpoint)


def write_summary(args: RolloutSFTConfig, numbers: Numbers, trained_with: dict[str, Any]) -> None:
    """Writes the numbers of a finished stage, and what it was trained with, to `summary.json`."""
    text = json.dumps({**numbers, _TRAINED_WITH: trained_with}, indent=2)
    write_atomically(Path(str(args.output_dir)) / SUMMARY_FILE, text + "\n")


def _told(values: dict[str, float]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in values.items())


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
