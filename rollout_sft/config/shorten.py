"""Values in messages, cut to a length that can be read."""

from __future__ import annotations

import reprlib
from typing import Any


def shorten(value: Any, limit: int = 120) -> str:
    """
    Writes a value as `repr` does, in `limit` characters at most.

    Never looks at more of the value than it shows, so it costs the same for a list of a million items.
    """
    try:
        return cut(_Repr().repr(value), limit)
    except Exception:  # a value whose repr fails, such as an integer of 5,000 digits
        return f"<{type(value).__name__}>"


def cut(text: str, limit: int = 120) -> str:
    """The text, with its middle left out where it is longer than `limit` characters."""
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
        """In the order of the mapping, not sorted as `reprlib` does."""
        if level <= 0:
            return "{...}"
        shown = [f"{self.repr1(k, level - 1)}: {self.repr1(x[k], level - 1)}" for k in list(x)[: self.maxdict]]
        return "{" + ", ".join([*shown, "..."] if len(x) > self.maxdict else shown) + "}"
