"""Reads and writes files so that every failure names the file, and escapes what a terminal would obey."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class FileError(ValueError):
    """Refuses a file that cannot be read or written: the message names it."""


class DuplicateNameError(ValueError):
    """Refuses a name that is given twice: one of its values would silently be dropped."""


def printable(text: str, *, keep: str = "") -> str:
    """Returns the text with each character that is not printable escaped as `repr` does. O(n).

    A terminal obeys control characters: they move the cursor, change its title or hide text. Half of a surrogate pair
    cannot be written at all.

    >>> print(printable("red: \\x1b[31m"))
    red: \\x1b[31m
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turns every error of another package that reads a file into a `FileError`.

    Readers raise anything for a damaged file, `MemoryError` and `RecursionError` included. Keep the block to their
    calls, so that a fault of packsched keeps its traceback.

    Args:
        what: The start of the message: the file, and what it is not.
    """
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{what}: {error.strerror or one_line(error)}.") from None
    except Exception as error:
        raise FileError(f"{what}: {one_line(error)}") from None


def one_line(error: BaseException) -> str:
    """Returns the message of another package's error in one line of at most 400 characters, or its type."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:397]}..."


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object of JSON (`object_pairs_hook`); raises `DuplicateNameError` for a key that it gives twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        check_unique((key for key, _ in pairs), "key")
    return found


def check_unique(names: Iterable[str], what: str) -> None:
    """Raises `DuplicateNameError` for the first name that was there before."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DuplicateNameError(f"the {what} {name!r} is given twice; keep one.")
        seen.add(name)


def write_file(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all; a device or a pipe is written directly.

    Raises:
        FileError: The file cannot be written; an older one is as it was.
    """
    unfinished = path.with_name(f"{path.name}.tmp")
    whole = not path.exists() or path.is_file()
    try:
        (unfinished if whole else path).write_bytes(data)
        if whole:
            os.replace(unfinished, path)
    except OSError as error:
        if whole:
            unfinished.unlink(missing_ok=True)
        raise FileError(f"{path}: cannot be written: {error.strerror or error}.") from None
