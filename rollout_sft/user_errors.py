"""Ends a command with the message alone where the user can act on it, and with the traceback everywhere else.

An error is the user's to act on if this project raised it on purpose: a `ValueError`, a missing file or package, or one
of the project's own errors. An error from the user's code or from a library keeps its traceback; where it came from a
sample or a target builder, the lines above the traceback name them. `training.log_level:
debug` shows every traceback.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import packsched
import rollout_sft
from rollout_sft.config.shorten import printable
from rollout_sft.config.yaml_file import read_document
from rollout_sft.ranks.distributed import PeerError

STATUS = 2
"""The exit status of a command that the user's input ended."""
_PACKAGES = tuple(str(Path(package.__path__[0])) + os.sep for package in (packsched, rollout_sft))
_KINDS = (ValueError, FileNotFoundError, ImportError)


@contextmanager
def message_alone(config: str | Path) -> Iterator[None]:
    """
    Ends the process with an error's message where the user can act on it.

    Every rank prints its own message. A rank that stops because another one failed says only that. Under torchrun or
    `accelerate launch` the launcher's report, which comes last, holds the message too.

    Args:
        config (`str` or `Path`):
            The configuration file; `training.log_level: debug` in it leaves errors as they are.

    Raises:
        `SystemExit`: with status 2, instead of an error that is the user's to act on.
    """
    try:
        yield
        return
    except Exception as error:
        if not is_for_user(error):
            _say_where(error)
            raise
        if _wants_traceback(config):
            raise
        message = "\n".join([str(error), *getattr(error, "__notes__", ())])
        shown = str(error).partition(". ")[0] + "." if isinstance(error, PeerError) else message
    # The frames that the traceback kept alive are gone here: a trainer in them could outlive its process group.
    _print_error(shown)
    _tell_launcher(message)
    raise SystemExit(STATUS)


def _say_where(error: BaseException) -> None:
    """Prints the error and its notes (sample, target builder, step) above the traceback, where they are seen first."""
    if notes := getattr(error, "__notes__", ()):
        _print_error("\n".join([f"{type(error).__name__}: {error}", *notes]))


def _print_error(message: str) -> None:
    rank = f"[rank {os.environ['RANK']}] " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    sys.stdout.flush()
    print(f"{rank}error: {printable(message)}", file=sys.stderr, flush=True)


def is_for_user(error: BaseException) -> bool:
    """Returns whether this project raised the error for the user to act on."""
    if type(error).__module__.partition(".")[0] in ("packsched", "rollout_sft"):
        return True
    return isinstance(error, _KINDS) and _raised_in(error.__traceback__).startswith(_PACKAGES)


def _raised_in(traceback: TracebackType | None) -> str:
    """Returns the file in which an error was raised."""
    file = ""
    while traceback is not None:
        file, traceback = traceback.tb_frame.f_code.co_filename, traceback.tb_next
    return file


def _wants_traceback(config: str | Path) -> bool:
    try:
        training = read_document(Path(config)).get("training")
    except (ValueError, FileNotFoundError):
        return False
    return isinstance(training, dict) and training.get("log_level") == "debug"


def _tell_launcher(message: str) -> None:
    """Writes the message to the file from which torchrun's report takes the cause of a failure."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        report = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
        with suppress(OSError):
            Path(file).write_text(json.dumps(report), encoding="utf-8")
