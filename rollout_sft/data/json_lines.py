"""Reads JSON lines within limits; refuses a damaged or hostile line by its number."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rollout_sft.config.shorten import cut, shorten

MAX_LINE_BYTES = 2 * 1024 * 1024
MAX_DEPTH = 64


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """
    Reads a file, line by line.

    Args:
        path (`Path`):
            The file.

    Returns:
        `Iterator[tuple[str, Any]]`: for each line its place (`file:line`) and its value.

    Raises:
        `ValueError`: a line is empty, not UTF-8, not JSON, too long or nested too deeply, or holds an integer of
            thousands of digits, a key twice or half of a surrogate pair; the message names file and line.
        `FileNotFoundError`: the file does not exist.
    """
    if not _is_file(path):
        raise FileNotFoundError(f"{cut(str(path), 400)}: no such file; the path is taken from {cut(os.getcwd(), 200)}.")
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            place = f"{path}:{number}"
            yield place, _parse(line, cut(place, 200), first=number == 1)


class DuplicateKeyError(ValueError):
    """Raised for an object that gives a key twice, of which `json` would drop the first value."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object of JSON (`object_pairs_hook`); refuses one that gives a key twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = first_repeated([key for key, _ in pairs])
        raise DuplicateKeyError(f"an object gives the key {shorten(twice)} twice; keep one.")
    return found


def first_repeated(names: Iterable[str]) -> str | None:
    """Returns the first name that was there before; None if there is none."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a path, or with a zero byte
        return False


def _parse(line: bytes, place: str, *, first: bool) -> Any:
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"{place}: longer than {MAX_LINE_BYTES} bytes; give one JSON object per line.")
    try:
        value = json.loads(line.decode("utf-8-sig" if first else "utf-8"), object_pairs_hook=unique_keys)
    except DuplicateKeyError as error:
        raise ValueError(f"{place}: {error}") from None
    except json.JSONDecodeError as error:
        what = "the line is empty" if not line.strip() else f"not JSON: {error.msg} at column {error.colno}"
        raise ValueError(f"{place}: {what}; give one JSON object per line.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: not UTF-8: {error.reason}; save the file as UTF-8.") from None
    except ValueError:
        raise ValueError(f"{place}: an integer of more digits than Python reads (4300); give it as text.") from None
    except RecursionError:
        raise ValueError(_too_deep(place)) from None
    # Other lines can hold neither half of a surrogate pair nor too deep a nesting.
    if b"\\u" in line or line.count(b"[") + line.count(b"{") > MAX_DEPTH:
        check_value(value, place)
    return value


def check_value(value: Any, place: str) -> None:
    """Raises `ValueError` for a value that is nested too deeply or holds half of a surrogate pair."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for part in level:
            kind = type(part)
            if kind is str:
                _check_text(part, place)
            elif kind is list:
                below += part
            elif kind is dict:
                below += part
                below += part.values()
        level = below
        if not level:
            return
    raise ValueError(_too_deep(place))


def _check_text(text: str, place: str) -> None:
    """Refuses half of a surrogate pair: JSON can write it, but no tokenizer takes it and no file can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        part = shorten(text[max(0, error.start - 20) : error.start + 20])
        raise ValueError(
            f"{place}: the text {part} holds half of a surrogate pair, which is no character; repair or remove it."
        ) from None


def _too_deep(place: str) -> str:
    return f"{place}: more than {MAX_DEPTH} objects and lists lie within each other; give a flatter record."
