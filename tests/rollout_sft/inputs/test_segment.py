"""A segment refuses what would train something else silently."""

import math
from dataclasses import replace

import pytest
import torch

from rollout_sft import Segment


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (([], [], []), "no tokens"),
        (([1, 2], [2], [1.0, 0.0]), "2 input_ids, 1 targets and 2 weights"),
        (([1, 2], [2, 0], [-1.0, 0.0]), r"a weight is -1\.0; weights are finite and 0 or more"),
        (([1, 2], [2, 0], [float("nan"), 0.0]), "a weight is nan"),
        (([1, 2], [2, 0], [float("inf"), 0.0]), "a weight is inf"),
        (([1, 2], [2, 3], [1.0, 1.0]), r"the last position has weight 1\.0"),
    ],
)
def test_bad_lists_are_refused_by_sample_and_number(lists, message):
    with pytest.raises(ValueError, match=rf"segment of sample 'a7': .*{message}"):
        Segment.from_lists(*lists, sample_id="a7")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": torch.tensor([-1.0, 0.0, 0.0]), "weight_sum": -1.0}, r"a weight is -1\.0; weights are finite"),
        ({"weights": torch.tensor([math.inf, 0.0, 0.0]), "weight_sum": math.inf}, "a weight is inf"),
        ({"weights": torch.tensor([math.nan, 0.0, 0.0])}, "a weight is nan"),
        ({"weights": torch.tensor([1.0, 0.0, 0.5])}, r"the last position has weight 0\.5"),
        ({"targets": torch.tensor([2, 3])}, "3 input_ids, 2 targets and 3 weights"),
        ({"input_ids": torch.tensor([[1, 2, 3]])}, "1 x 3 input_ids, 3 targets and 3 weights"),
        ({"indices": {"boxes": torch.tensor([0, -1])}}, "index field 'boxes' holds position -1"),
        ({"indices": {"supervised": torch.tensor([0])}}, "holds 1 positions, but they are not the 2 whose weight"),
        ({"indices": {"supervised": torch.tensor([], dtype=torch.int64)}}, "holds 0 positions, but"),
    ],
)
def test_a_segment_made_by_hand_is_checked_like_any_other(changes, message):
    good = Segment.from_lists([1, 2, 3], [2, 3, 0], [1.0, 0.5, 0.0], sample_id="a7")
    with pytest.raises(ValueError, match=rf"segment of sample 'a7': .*{message}"):
        replace(good, **changes)


def test_a_segment_made_by_hand_finds_what_is_supervised():
    ids, weights = torch.tensor([1, 2, 3]), torch.tensor([0.0, 0.5, 0.0])
    segment = Segment(input_ids=ids, targets=ids, weights=weights, weight_sum=0.5)
    assert segment.indices["supervised"].tolist() == [1]


def test_on_a_device_what_is_supervised_must_be_given():
    ids = torch.tensor([1, 2, 3], device="meta")
    with pytest.raises(ValueError, match=r"no index field 'supervised', .* make the segment on the CPU"):
        Segment(input_ids=ids, targets=ids, weights=ids.float(), weight_sum=1.0)


def test_an_index_outside_the_segment_is_refused():
    with pytest.raises(ValueError, match="index field 'boxes' holds position 3, but the segment has 3 tokens"):
        Segment.from_lists([1, 2, 3], [2, 3, 0], [1.0, 1.0, 0.0], indices={"boxes": [0, 3]})


def test_weights_that_change_without_their_sum_are_refused():
    """The sum is the denominator of the loss: a stale one would scale the gradient silently."""
    segment = Segment.from_lists([1, 2, 3], [2, 3, 0], [1.0, 0.5, 0.0], sample_id="a7")
    with pytest.raises(ValueError, match=r"'a7': weight_sum is 1\.5, but the weights sum to 3\.0"):
        replace(segment, weights=segment.weights * 2)
    assert replace(segment, weights=segment.weights * 2, weight_sum=3.0).weight_sum == 3.0
