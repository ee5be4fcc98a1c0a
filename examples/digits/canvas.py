"""
Canvases of handwritten digits, and the tokens a text model sees them as.

- The images are scikit-learn's bundled UCI digits: 1797 of 8x8 pixels with values 0..16, nothing is
  downloaded. Train, eval and test use disjoint ones.
- A canvas has 40x40 pixels. Digits stand at x a multiple of 4 and y a multiple of 8 and do not overlap.
- It is written as codes of its 4x4 patches, 64 k-means centres fitted on training images, band by band of 8
  pixels and only where there is ink: `<row> y`, then `x top bottom` for each inked column of patches; last
  `<ans>`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

CANVAS = 40
DIGIT = 8
PATCH = 4
CODES = 64
INK = 16.0
SPLITS = ("train", "eval", "test")
MOST_DIGITS = 15
"""This many digits always find a place on the canvas."""
ROW, ANSWER = "<row>", "<ans>"
NOISE = 1.5
"""Standard deviation on inked pixels of training digits: 1440 images alone are learnt by heart."""

Array = NDArray[np.float64]


def code_name(code: int) -> str:
    """The token of a patch code."""
    return f"<c{code:02d}>"


def paint(rng: np.random.Generator, split: str, count: int, *, step: int = PATCH) -> tuple[Array, list[dict[str, Any]]]:
    """
    Paints digits of a split at random free places.

    Args:
        rng (`np.random.Generator`):
            Decides everything.
        split (`str`):
            Whose images are used; training images get noise.
        count (`int`):
            How many digits; 15 always find a place.
        step (`int`, *optional*, defaults to 4):
            Digits stand at multiples of it from left to right.

    Returns:
        `tuple[Array, list[dict]]`: the canvas of shape `(40, 40)` and its objects (`desc`, `bbox_2d`) in
        reading order.
    """
    images, labels = _digits()
    chosen = rng.choice(_images_of(split), size=count)
    canvas = np.zeros((CANVAS, CANVAS))
    objects = []
    for index, (y, x) in zip(chosen, _free_places(rng, count, step), strict=True):
        image = images[index]
        if split == "train":
            image = np.where(image > 0, np.clip(image + rng.normal(0, NOISE, image.shape), 0, INK), 0)
        canvas[y : y + DIGIT, x : x + DIGIT] = image
        objects.append({"desc": str(labels[index]), "bbox_2d": [x, y, x + DIGIT, y + DIGIT]})
    return canvas, objects


def canvas_tokens(canvas: Array) -> list[str]:
    """Writes a canvas of shape `(40, 40)` as tokens."""
    codes = _nearest(_patches(canvas), codebook()).reshape(CANVAS // PATCH, CANVAS // PATCH)
    tokens = []
    for y in range(0, CANVAS, DIGIT):
        columns = []
        for x in range(0, CANVAS, PATCH):
            if canvas[y : y + DIGIT, x : x + PATCH].any():
                top, bottom = codes[y // PATCH, x // PATCH], codes[y // PATCH + 1, x // PATCH]
                columns += [str(x), code_name(top), code_name(bottom)]
        if columns:
            tokens += [ROW, str(y), *columns]
    return [*tokens, ANSWER]


@cache
def codebook() -> Array:
    """
    The centres of the patch codes, shape `(64, 16)`.

    Own k-means++ and Lloyd: library versions draw other centres, and threads sum them in another order.
    """
    images, _ = _digits()
    points = np.concatenate([_patches(image) for image in images[_images_of("train")]])
    rng = np.random.default_rng(0)
    chosen, distance = [0], np.full(len(points), np.inf)
    while len(chosen) < CODES:
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
        chosen.append(int(rng.choice(len(points), p=distance / distance.sum())))
    centres = points[chosen]
    for _ in range(20):
        nearest = _nearest(points, centres)
        centres = np.stack(
            [points[nearest == k].mean(axis=0) if (nearest == k).any() else centres[k] for k in range(CODES)]
        )
    return centres


def _free_places(rng: np.random.Generator, count: int, step: int) -> list[tuple[int, int]]:
    every = [(y, x) for y in range(0, CANVAS, DIGIT) for x in range(0, CANVAS - PATCH, step)]
    places: list[tuple[int, int]] = []
    for k in rng.permutation(len(every)):
        y, x = every[k]
        if len(places) < count and all(y != b or abs(x - a) >= DIGIT for b, a in places):
            places.append((y, x))
    return sorted(places)


def _patches(image: Array) -> Array:
    """All 4x4 patches of an image, row by row, shape `(patches, 16)`."""
    rows, columns = image.shape[0] // PATCH, image.shape[1] // PATCH
    return image.reshape(rows, PATCH, columns, PATCH).swapaxes(1, 2).reshape(rows * columns, PATCH * PATCH)


def _nearest(points: Array, centres: Array) -> NDArray[np.intp]:
    return np.argmin((centres**2).sum(axis=1) - 2 * points @ centres.T, axis=1)


@cache
def _digits() -> tuple[Array, NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images, bunch.target


@cache
def _images_of(split: str) -> NDArray[np.int64]:
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; the digits have {', '.join(SPLITS)}.")
    # Writers follow one another and each wrote 0 to 9 in turn: every tenth run of ten holds all writers and classes.
    tenth = np.arange(len(_digits()[1])) // 10 % 10
    return np.flatnonzero({"train": tenth < 8, "eval": tenth == 8, "test": tenth == 9}[split])
