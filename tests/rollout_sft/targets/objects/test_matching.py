"""Matching against brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_sft.targets.objects.matching import iou_matrix, match_boxes

coordinate = st.integers(0, 12)


@st.composite
def boxes(draw, max_size=4):
    def box():
        x, y = draw(coordinate), draw(coordinate)
        return [x, y, x + draw(st.integers(1, 8)), y + draw(st.integers(1, 8))]

    return [box() for _ in range(draw(st.integers(0, max_size)))]


def slow_iou(a, b):
    cells = lambda box: {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}  # noqa: E731
    return len(cells(a) & cells(b)) / len(cells(a) | cells(b))


@given(boxes(), boxes())
def test_iou_counts_cells(predicted, true):
    iou = iou_matrix(predicted, true)
    assert iou.shape == (len(predicted), len(true))
    for i, j in np.ndindex(iou.shape):
        assert iou[i, j] == pytest.approx(slow_iou(predicted[i], true[j]))


@given(boxes(), boxes(), st.sampled_from([0.1, 0.3, 0.5, 1.0]))
def test_the_matching_has_the_largest_sum_of_allowed_ious(predicted, true, gate):
    iou = iou_matrix(predicted, true)
    pairs = match_boxes(iou, iou >= gate)
    assert list(pairs) == sorted(pairs)
    assert len(set(pairs.values())) == len(pairs)
    assert all(iou[i, j] >= gate for i, j in pairs.items())
    rows, columns = range(len(predicted)), range(len(true))
    best = max(
        sum(iou[i, j] for i, j in zip(some, order, strict=True) if iou[i, j] >= gate)
        for size in range(min(len(rows), len(columns)) + 1)
        for some in itertools.combinations(rows, size)
        for order in itertools.permutations(columns, size)
    )
    assert sum(iou[i, j] for i, j in pairs.items()) == pytest.approx(best)


def test_boxes_that_do_not_overlap_are_never_matched():
    iou = iou_matrix([[0, 0, 1, 1]], [[5, 5, 6, 6]])
    assert match_boxes(iou, np.ones_like(iou, dtype=bool)) == {}


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=8, max_size=8))
def test_any_finite_box_has_an_iou_between_0_and_1(numbers):
    def box(x1, x2, y1, y2):
        return [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]

    iou = iou_matrix([box(*numbers[:4])], [box(*numbers[4:])])
    assert 0 <= iou[0, 0] <= 1
    match_boxes(iou, iou >= 0.5)
