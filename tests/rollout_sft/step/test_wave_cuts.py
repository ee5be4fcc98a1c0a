"""Where waves are cut follows from earlier lengths alone, and ends a step as early as any cuts would."""

import random
from itertools import combinations

import pytest

from rollout_sft.step.wave_cuts import wave_cuts


def end_of_step(lengths: list[int], cuts: tuple[int, ...]) -> int:
    """When the last wave is trained, if all training takes as long as the longest response."""
    longest = max(lengths)
    ends = []
    for low, cut in zip((0, *cuts), (*cuts, longest), strict=True):
        left = sum(length > low for length in lengths)
        ends.append(cut + longest * left // len(lengths))
    return max(ends)


@pytest.mark.parametrize("seed", range(40))
def test_no_other_cuts_end_the_step_earlier(seed):
    rng = random.Random(seed)
    lengths = [rng.randint(1, rng.choice((8, 200))) for _ in range(rng.randint(1, 9))]
    waves = rng.randint(1, 4)
    cuts = wave_cuts(lengths, waves)
    assert len(cuts) < waves
    assert cuts == sorted(set(cuts))
    others = (c for k in range(waves) for c in combinations(sorted(set(lengths) - {max(lengths)}), k))
    assert end_of_step(lengths, tuple(cuts)) == min(end_of_step(lengths, other) for other in others)


def test_cuts_do_not_depend_on_the_order_of_the_lengths():
    lengths = [17 * i % 96 + 5 for i in range(96)]
    assert wave_cuts(lengths, 4) == wave_cuts(sorted(lengths), 4) == wave_cuts(lengths[::-1], 4) != []


def test_no_cut_splits_responses_that_end_together():
    assert wave_cuts([1000] * 50, 8) == []
    assert wave_cuts([], 8) == wave_cuts([3, 5], 1) == []


def test_the_first_cut_parts_early_responses_from_capped_ones():
    early, capped = list(range(60, 150, 2)), [3084] * 51
    assert wave_cuts(early + capped, 2) == [148]
    assert wave_cuts(early + capped, 8)[-1] == 148
