"""Reads server-sent events as strictly as vLLM writes them: one line of data, then an empty line.

The reader of httpx2 passes over fields that it does not know and replaces bytes that are not UTF-8; here both are
errors, because nothing that a server sends may be lost without a word.
"""

from __future__ import annotations


class Events:
    """Cuts the bytes of a stream into events, wherever the pieces in which they arrive begin and end."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: bytes | None = None

    def feed(self, piece: bytes) -> list[bytes]:
        """
        Returns the data of the events that a piece completes; costs time in proportion to its bytes.

        Args:
            piece (`bytes`):
                What arrived after all earlier pieces.

        Raises:
            `ValueError`: a line is no data, no comment and not empty, or an event has several lines of data.
        """
        found = []
        lines = piece.split(b"\n")
        self._rest += lines[0]
        for after in lines[1:]:
            line = bytes(self._rest).removesuffix(b"\r")
            self._rest = bytearray(after)
            if line.startswith(b"data:"):
                if self._data is not None:
                    raise ValueError("an event with several lines of data")
                self._data = line[5:].removeprefix(b" ")
            elif not line and self._data is not None:
                found.append(self._data)
                self._data = None
            elif line and not line.startswith(b":"):  # a comment keeps an idle connection open
                raise ValueError("a line that is not an event's")
        return found

    def end(self) -> None:
        """Raises `ValueError` if the stream ended with something that no event can begin with."""
        rest = bytes(self._rest)
        if not (rest.startswith((b"data:", b":")) or b"data:".startswith(rest)):
            raise ValueError("a line that is not an event's")
