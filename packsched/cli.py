"""The command `packsched`: says what to install where extra `cli` is missing, and runs the commands where it is not."""

from __future__ import annotations

import os
import sys

EXTRA = ("typer", "click", "rich", "matplotlib")


def app() -> None:
    """Runs `packsched replay | advise | lengths` with the arguments of the process."""
    try:
        from packsched.commands import commands

        try:
            commands(prog_name="packsched")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has left, as `head` does; Python would say so at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRA:
            raise
        raise SystemExit(
            f"packsched's commands need {missing}, which is not installed. Install it: pip install 'packsched[cli]'"
        ) from None
