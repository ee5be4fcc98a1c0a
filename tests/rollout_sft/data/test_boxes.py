"""Boxes in thousandths of the image, and back."""

import numpy as np
import pytest

from rollout_sft.data.boxes import to_norm1000, to_pixels
from rollout_sft.inputs.images import Image
from rollout_sft.targets.objects.matching import iou_matrix


def image(width, height):
    return Image(source=np.zeros((height, width, 3), dtype=np.uint8), height=height, width=width)


def turned(box, width, height):
    (item,) = to_norm1000([{"desc": "a", "bbox_2d": box}], image(width, height), "x")
    return item["bbox_2d"]


def test_boxes_come_back_to_within_a_thousandth():
    rng = np.random.default_rng(0)
    for _ in range(200):
        width, height = rng.integers(1, 4000, 2).tolist()
        corners = np.sort(rng.random((2, 2)), axis=0) * (width, height)
        box = corners.ravel().tolist()
        (back,) = to_pixels([{"desc": "a", "bbox_2d": turned(box, width, height)}], image(width, height))
        limit = np.array([width, height] * 2) / 1000 * 1.001
        assert (np.abs(np.array(back["bbox_2d"]) - box) <= limit).all()


@pytest.mark.parametrize("box", [[3, 0, 3.001, 5], [639.999, 0, 640, 5], [0, 0, 1e-9, 5]])
def test_a_thin_box_stays_a_box(box):
    x1, _, x2, _ = turned(box, 640, 480)
    assert 0 <= x1 < x2 <= 1000


def test_a_box_may_reach_a_pixel_beyond_the_image():
    assert turned([-0.4, 0, 640.7, 480.2], 640, 480) == [0, 0, 1000, 1000]
    with pytest.raises(ValueError, match=r"x: objects\[0\].* is \[0, 0, 642, 480\], beyond the image of 640 x 480"):
        turned([0, 0, 642, 480], 640, 480)


def test_the_overlap_of_boxes_is_the_same_in_both_units():
    pixels = [[64, 48, 320, 240], [160, 96, 480, 384]]
    norm = [turned(box, 640, 480) for box in pixels]
    assert iou_matrix(pixels[:1], pixels[1:])[0, 0] == pytest.approx(iou_matrix(norm[:1], norm[1:])[0, 0])
