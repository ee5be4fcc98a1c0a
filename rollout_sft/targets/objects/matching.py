"""Matches predicted and true boxes one to one: finds the pairs above a gate with the largest sum of IoU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Box = Sequence[float]


def iou_matrix(predicted: Sequence[Box], true: Sequence[Box]) -> NDArray[np.float64]:
    """
    Computes the intersection over union of every predicted with every true box.

    Args:
        predicted, true (`Sequence[Box]`):
            Boxes `x1, y1, x2, y2` with `x1 < x2` and `y1 < y2`.

    Returns:
        `NDArray` of shape `(len(predicted), len(true))`: values in 0..1; 0 where the areas overflow a float.
    """
    p = np.asarray(predicted, dtype=np.float64).reshape(-1, 1, 4)
    t = np.asarray(true, dtype=np.float64).reshape(1, -1, 4)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        sides = np.minimum(p[..., 2:], t[..., 2:]) - np.maximum(p[..., :2], t[..., :2])
        intersection = np.clip(sides, 0, None).prod(axis=-1)
        areas = (p[..., 2:] - p[..., :2]).prod(axis=-1) + (t[..., 2:] - t[..., :2]).prod(axis=-1)
        iou = intersection / (areas - intersection)
    return np.where(np.isfinite(iou), np.clip(iou, 0, 1), 0.0)


def match_boxes(iou: NDArray[np.float64], allowed: NDArray[np.bool_]) -> dict[int, int]:
    """
    Matches boxes by the Hungarian method; O(n^3) in the longer side.

    Args:
        iou (`NDArray` of shape `(predicted, true)`):
            The result of [`iou_matrix`].
        allowed (`NDArray` of the same shape):
            Pairs that may be matched at all: the gate. A pair with IoU 0 is never matched.

    Returns:
        `dict[int, int]`: predicted index to true index, ascending; the allowed pairs with the largest sum
        of IoU.
    """
    from scipy.optimize import linear_sum_assignment

    gain = np.where(allowed, iou, 0.0)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return {int(i): int(j) for i, j in zip(rows, columns, strict=True) if gain[i, j] > 0}
