"""Shortens values for messages."""

from __future__ import annotations

import reprlib
from typing import Any


def shorten(value: Any, limit: int = 120) -> str:
    """
    Writes a value as `repr` does, in at most `limit` characters.

    Reads only the part of the value that it shows, so a list of a million items costs no more.
    """
    try:
        return cut(_Repr().repr(value), limit)
    except Exception:  # a value whose repr fails, such as an integer of 5,000 digits
        return f"<{type(value).__name__}>"


def cut(text: str, limit: int = 120) -> str:
    """Returns the text; leaves out its middle where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    head = (limit - 3) * 2 // 3
    return f"{text[:head]}...{text[len(text) - (limit - 3 - head) :]}"


class _Repr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxstring = self.maxother = self.maxlong = 100

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """Writes a mapping in its own order; `reprlib` would sort it."""
        if level <= 0:
            return "{...}"
        shown = [f"{self.repr1(k, level - 1)}: {self.repr1(x[k], level - 1)}" for k in list(x)[: self.maxdict]]
        return "{" + ", ".join([*shown, "..."] if len(x) > self.maxdict else shown) + "}"


def printable(text: str) -> str:
    """Escapes all characters but line ends that a terminal would obey, as `repr` does; data files may hold any."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
