"""Writes files that are whole or absent."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: str | Path, text: str) -> None:
    """
    Writes a file at once: a process that dies while it writes leaves the old file, or none.

    Args:
        path (`str` or `Path`):
            The file; its folder is created if it does not exist.
        text (`str`):
            The content, written as UTF-8.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
