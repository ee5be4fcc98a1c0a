"""The mark of a finished checkpoint.

It is written last, when every rank is done: a process killed during a save leaves a folder without it, and the
checkpoint before stays.
"""

from __future__ import annotations

from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

FINISHED = "finished"
"""Name of the file that marks a checkpoint as complete."""


def mark_finished(checkpoint: str | Path) -> None:
    """
    Marks a checkpoint as complete.

    Args:
        checkpoint (`str` or `Path`):
            The checkpoint's folder; every rank must have finished writing to it.
    """
    (Path(checkpoint) / FINISHED).touch()


def mark_unfinished(checkpoint: str | Path) -> None:
    """
    Takes the mark away before a checkpoint is written again.

    Args:
        checkpoint (`str` or `Path`):
            The checkpoint's folder; need not exist.
    """
    (Path(checkpoint) / FINISHED).unlink(missing_ok=True)


def last_finished_checkpoint(output_dir: str | Path) -> str | None:
    """
    The latest checkpoint whose save was not interrupted.

    Args:
        output_dir (`str` or `Path`):
            The run's folder.

    Returns:
        `str` or `None`: its path, or None when there is none.
    """
    steps = {}
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if step.isdigit() and (path / FINISHED).is_file():
            steps[int(step)] = str(path)
    return steps[max(steps)] if steps else None


def require_finished(checkpoint: str | Path) -> None:
    """
    Refuses a checkpoint that may be incomplete.

    Args:
        checkpoint (`str` or `Path`):
            The checkpoint's folder.

    Raises:
        `ValueError`: its save was interrupted, or it was not written by this trainer.
    """
    if not (Path(checkpoint) / FINISHED).is_file():
        last = last_finished_checkpoint(Path(checkpoint).parent)
        beside = f"The last finished one beside it is {last}." if last else "There is no finished one beside it."
        raise ValueError(
            f"{checkpoint} has no file named {FINISHED}: its save was interrupted, or another program wrote it. "
            f"{beside} If you know that it is complete, put an empty file of that name into it."
        )
