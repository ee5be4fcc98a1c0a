"""Checks the ground truth of a sample: the column `objects` of a record."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rollout_sft.config.shorten import shorten

_NO_TEXT = re.compile("[\ud800-\udfff\ufffd]")


@dataclass(frozen=True, slots=True)
class TrueObject:
    """
    Holds one object of the ground truth.

    Args:
        desc (`str`): Its description.
        box (`tuple[float, ...]`): `x1, y1, x2, y2` as the data give them, so that 4 is written `4` and not
        `4.0`.
    """

    desc: str
    box: tuple[float, ...]

    def as_json(self, *, ensure_ascii: bool = False) -> str:
        """Returns the object as references write it, with the separators of `json.dumps`."""
        return f'{{"desc": {text_as_json(self.desc, ensure_ascii=ensure_ascii)}, "bbox_2d": {json.dumps(self.box)}}}'


def text_as_json(text: str, *, ensure_ascii: bool) -> str:
    """
    Returns a text as JSON, quotes included.

    Args:
        text (`str`):
            Any text.
        ensure_ascii (`bool`):
            Whether all but ASCII is escaped. Otherwise only what cannot be told from bytes that are no text: halves of
            surrogate pairs, and U+FFFD.
    """
    written = json.dumps(text, ensure_ascii=ensure_ascii)
    return written if ensure_ascii else _NO_TEXT.sub(lambda match: f"\\u{ord(match[0]):04x}", written)


def read_truth(objects: Any, where: str) -> list[TrueObject]:
    """
    Checks the ground truth of one sample. Keys besides `desc` and `bbox_2d` are ignored.

    Args:
        objects (`Any`):
            The sample's `objects`: a list of mappings.
        where (`str`):
            The start of every message, such as `"sample '17'"`.

    Raises:
        `ValueError`: something is missing or malformed; the message names the field.
    """
    if not isinstance(objects, list | tuple):
        raise ValueError(f"{where}: objects is {_short(objects)}; give a list, empty if nothing is there.")
    truths = []
    for i, item in enumerate(objects):
        field = f"{where}: objects[{i}]"
        if not isinstance(item, Mapping):
            raise ValueError(f'{field} is {_short(item)}; give {{"desc": str, "bbox_2d": [x1, y1, x2, y2]}}.')
        for key in ("desc", "bbox_2d"):
            if key not in item:
                raise ValueError(f"{field} has no {key!r}, only {shorten(sorted(map(str, item)))}; add it.")
        if not isinstance(item["desc"], str):
            raise ValueError(f"{field}.desc is {_short(item['desc'])}; give a string.")
        box = item["bbox_2d"]
        if not is_box(box):
            raise ValueError(
                f"{field}.bbox_2d is {_short(box)}; give four finite numbers [x1, y1, x2, y2] with x1 < x2 and y1 < y2."
            )
        truths.append(TrueObject(item["desc"], tuple(box)))
    return truths


def is_box(box: Any) -> bool:
    """Returns whether `box` is four finite numbers `x1, y1, x2, y2` with `x1 < x2` and `y1 < y2`."""
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(_is_finite(x) for x in box):
        return False
    x1, y1, x2, y2 = map(float, box)
    return x1 < x2 and y1 < y2


def _is_finite(x: Any) -> bool:
    if isinstance(x, bool) or not isinstance(x, int | float):
        return False
    try:
        return math.isfinite(x)
    except OverflowError:  # an integer too large for a float
        return False


def _short(value: Any) -> str:
    return f"{type(value).__name__} {shorten(value, 80)}"
