"""Every bound is the textbook's: compared with its definition, written out with fractions and without shortcuts."""

import random
from fractions import Fraction
from math import ceil, floor

import pytest

from packsched.planner.bounds import (
    BOUNDS,
    dual_feasible_bound,
    lower_bound,
    martello_toth_bound,
    shortest_segments_bound,
    volume_bound,
)


def windows(seed, count):
    """Sorted windows of every kind: short and long segments, many equal ones, lengths at half and a third of a pack."""
    rng = random.Random(seed)
    for _ in range(count):
        cap = rng.choice((1, 2, 6, 7, 10, 20, 51, 100, 1000))
        low, high = rng.choice(((1, cap), (1, max(1, cap // 4)), (cap // 4 + 1, cap // 2 + 1), (cap // 3, cap // 2)))
        chosen = [rng.randint(max(1, min(low, cap)), max(1, high)) for _ in range(rng.randint(0, 30))]
        if rng.random() < 0.3:
            chosen += [cap] * rng.randint(0, 2) + [cap // 2 or 1] * rng.randint(0, 4)
        yield sorted(chosen, reverse=True), cap


def volume(lengths, cap):
    return ceil(Fraction(sum(lengths), cap))


def martello_toth(lengths, cap):
    """L2: for each threshold k, large segments beside which nothing of length k fits, the other large, and medium."""
    best = 0
    for k in range(cap // 2 + 1):
        alone = [length for length in lengths if length > cap - k]
        large = [length for length in lengths if cap - k >= length and 2 * length > cap]
        medium = [length for length in lengths if 2 * length <= cap and length >= k]
        beside = len(large) * cap - sum(large)
        best = max(best, len(alone) + len(large) + max(0, ceil(Fraction(sum(medium) - beside, cap))))
    return best


def shortest_segments(lengths, cap):
    """The fewest packs, no fewer than the tokens need, whose r fullest can hold r * (k + 1) of the shortest."""
    packs = ceil(Fraction(sum(lengths), cap))
    while packs < len(lengths):
        per_pack, more = divmod(len(lengths), packs)
        if sum(sorted(lengths)[: more * (per_pack + 1)]) <= more * cap:
            break
        packs += 1
    return packs


def dual_feasible(lengths, cap):
    def u(k, length):
        share = (k + 1) * Fraction(length, cap)
        return Fraction(length, cap) if share.denominator == 1 else Fraction(floor(share), k)

    return max(ceil(sum((u(k, length) for length in lengths), Fraction(0))) for k in range(1, 21))


@pytest.mark.parametrize(
    ("bound", "textbook"),
    [
        (volume_bound, volume),
        (martello_toth_bound, martello_toth),
        (shortest_segments_bound, shortest_segments),
        (dual_feasible_bound, dual_feasible),
    ],
    ids=["volume", "Martello-Toth", "shortest segments", "dual feasible"],
)
def test_a_bound_is_its_definition(bound, textbook):
    found = set()
    for lengths, cap in windows(1, 300):
        packs = bound(lengths, cap)
        assert packs == textbook(lengths, cap), (lengths, cap)
        found.add(packs)
    assert len(found) > 10, "the windows are all alike: the test would show little"


def test_the_dual_feasible_bound_is_exact_where_64_bits_end():
    """The largest numbers that are still counted in 64 bits, and the smallest ones that are not."""
    for cap in ((2**63 - 1) // (21 * 3), (2**63 - 1) // (21 * 3) + 1):
        lengths = [cap, cap // 2 + 1, cap // 2 + 1]
        assert dual_feasible_bound(lengths, cap) == dual_feasible(lengths, cap) == 3


def test_the_best_bound_is_named_by_the_first_that_reaches_it():
    assert lower_bound([5, 5, 1], 10) == (2, "volume")
    assert lower_bound([6, 6, 6], 10) == (3, "Martello-Toth L2")
    assert lower_bound([4, 4, 4, 4, 4], 10) == (3, "shortest segments")
    assert lower_bound([10, 10, 6, 6, 5, 3, 3, 3, 3], 10) == (6, "dual-feasible functions")


def test_the_costly_bound_is_left_out_of_large_windows():
    lengths, cap = [34] * 7 + [26], 100
    assert lower_bound(lengths, cap) == (4, "dual-feasible functions")
    many = sorted(lengths * 512, reverse=True)
    assert lower_bound(many, cap)[1] == "dual-feasible functions"
    assert lower_bound([*many, 1], cap)[1] != "dual-feasible functions"
    assert [bound.most_segments for bound in BOUNDS] == [float("inf")] * 3 + [4096]
