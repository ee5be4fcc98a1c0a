"""
Turns the boxes of objects from pixels of the image into the units in which the model writes them, and back.

`norm1000`: 0 is the left or upper border and 1000 the right or lower one, as Qwen3-VL was trained. The numbers do not
depend on the size at which the model sees the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rollout_sft.inputs.images import Image

LARGEST = 1000
_SLACK = 1.0
"""Pixels by which a box may reach beyond the image; annotations are rounded."""


def to_norm1000(objects: Sequence[Mapping[str, Any]], image: Image, where: str) -> list[dict[str, Any]]:
    """
    Turns boxes in pixels into integers from 0 to 1000.

    A box that is thinner than a thousandth of the image becomes one thousandth thick.

    Args:
        objects (`Sequence[Mapping]`):
            Checked objects; what they hold besides `bbox_2d` is kept.
        image (`Image`):
            Gives the height and width, after the rotation that EXIF asks for.
        where (`str`):
            The start of every message.

    Raises:
        `ValueError`: a box reaches beyond the image, so it is not in its pixels.
    """
    turned = []
    for i, item in enumerate(objects):
        x1, y1, x2, y2 = item["bbox_2d"]
        if min(x1, y1) < -_SLACK or x2 > image.width + _SLACK or y2 > image.height + _SLACK:
            raise ValueError(
                f"{where}: objects[{i}].bbox_2d is {list(item['bbox_2d'])}, beyond the image of {image.width} x "
                f"{image.height} pixels; data.boxes norm1000 takes boxes in its pixels, after its EXIF rotation. "
                "For boxes in the model's own units give data.boxes as_given."
            )
        x1, x2 = _interval(x1, x2, image.width)
        y1, y2 = _interval(y1, y2, image.height)
        turned.append({**item, "bbox_2d": [x1, y1, x2, y2]})
    return turned


def to_pixels(objects: Sequence[Mapping[str, Any]], image: Image) -> list[dict[str, Any]]:
    """Undoes [`to_norm1000`] up to rounding, for pictures: also for what a model answered."""
    scale = [image.width / LARGEST, image.height / LARGEST] * 2
    return [
        {**item, "bbox_2d": [value * by for value, by in zip(item["bbox_2d"], scale, strict=True)]} for item in objects
    ]


def _interval(low: float, high: float, side: int) -> tuple[int, int]:
    first, last = (min(max(round(value / side * LARGEST), 0), LARGEST) for value in (low, high))
    if first == last:
        first, last = (first, last + 1) if last < LARGEST else (first - 1, last)
    return first, last
