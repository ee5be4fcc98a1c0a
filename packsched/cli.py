"""The command `packsched`: says what to install where extra `cli` is missing, and runs the commands where it is not."""

from __future__ import annotations

import io
import os
import sys
import unicodedata

EXTRA = ("typer", "click", "rich", "matplotlib")


def app() -> None:
    """Runs `packsched replay | advise | lengths` with the arguments of the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may hold bytes that are no text
            stream.reconfigure(errors="backslashreplace")
    for argument in sys.argv[1:]:
        if any(unicodedata.category(sign) in ("Cc", "Cf") for sign in argument):
            raise SystemExit(
                f"packsched: the argument {argument!a} holds a control character; rename the file or column."
            )
    try:
        from packsched.commands import commands

        try:
            commands(prog_name="packsched")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has left, as `head` does
        _leave()
        raise SystemExit(1) from None
    except OSError as error:  # files that are read or written are named by the commands; this is the output
        _leave()
        raise SystemExit(f"packsched: the output cannot be written: {error.strerror or error}.") from None
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRA:
            raise
        raise SystemExit(
            f"packsched's commands need {missing}, which is not installed. Install it: pip install 'packsched[cli]'"
        ) from None


def _leave() -> None:
    """Drops what waits for standard output; Python would fail on it once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
