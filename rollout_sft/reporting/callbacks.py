"""Makes the callbacks that the configuration names by import path, and gives TensorBoard its one folder."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback

from rollout_sft.config.import_path import call_import_path, import_path

TENSORBOARD_FOLDER = "tensorboard"
_KEY = "training.callbacks"
_TAKES = "a list of module:Class, each a transformers.TrainerCallback made with trainer=, or without arguments"


def make_callbacks(paths: Sequence[str], trainer: Any) -> Iterator[TrainerCallback]:
    """
    Makes the callbacks of `training.callbacks`.

    Args:
        paths (`Sequence[str]`):
            `module:Class` of each callback.
        trainer (`RolloutSFTTrainer`):
            The argument of each class whose constructor takes `trainer`; the others are made without arguments.

    Returns:
        `Iterator[TrainerCallback]`: one for each path, in order.

    Raises:
        `ValueError`: a path cannot be imported, or does not name a `TrainerCallback` class.
    """
    for path in paths:
        found = import_path(path, key=_KEY, takes=_TAKES)
        if not (isinstance(found, type) and issubclass(found, TrainerCallback)):
            raise ValueError(f"{_KEY} names {path!r}, which is not a TrainerCallback class; it takes {_TAKES}.")
        keywords = {"trainer": trainer} if "trainer" in inspect.signature(found).parameters else {}
        yield call_import_path(path, key=_KEY, takes=_TAKES, **keywords)


def keep_tensorboard_in(output_dir: str | None, callbacks: Iterable[TrainerCallback]) -> None:
    """
    Makes TensorBoard write to `<output_dir>/tensorboard` alone, unless `TENSORBOARD_LOGGING_DIR` is set.

    The callback of transformers chooses its folder when training begins. An evaluation before that opens one below the
    working directory, and what follows goes to another.

    Args:
        output_dir (`str`):
            The folder of the run.
        callbacks (`Iterable[TrainerCallback]`):
            The callbacks of the trainer.
    """
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(Path(str(output_dir)) / TENSORBOARD_FOLDER)
