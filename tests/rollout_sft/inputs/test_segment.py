"""A segment refuses what would train something else silently."""

from dataclasses import replace

import pytest

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


def test_an_index_outside_the_segment_is_refused():
    with pytest.raises(ValueError, match="index field 'boxes' holds position 3, but the segment has 3 tokens"):
        Segment.from_lists([1, 2, 3], [2, 3, 0], [1.0, 1.0, 0.0], indices={"boxes": [0, 3]})


def test_weights_that_change_without_their_sum_are_refused():
    """The sum is the denominator of the loss: a stale one would scale the gradient silently."""
    segment = Segment.from_lists([1, 2, 3], [2, 3, 0], [1.0, 0.5, 0.0], sample_id="a7")
    with pytest.raises(ValueError, match=r"'a7': weight_sum is 1\.5, but the weights sum to 3\.0"):
        replace(segment, weights=segment.weights * 2)
    assert replace(segment, weights=segment.weights * 2, weight_sum=3.0).weight_sum == 3.0
