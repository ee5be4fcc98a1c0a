"""The bound of column generation: proofs that brute force confirms, whatever the floating-point numbers did."""

import random
from itertools import product

import numpy as np
import pytest

from packsched.planner import column_generation as generation
from packsched.planner.bin_completion import bin_completion
from packsched.planner.column_generation import column_generation, heaviest_patterns
from tests.packsched.test_window import by_every_assignment

WORK = 10**8


def windows(seed, count):
    """Windows of up to nine segments, nearly full, many of them of few lengths: where weights prove most."""
    rng = random.Random(seed)
    for _ in range(count):
        cap, packs = rng.choice((12, 20, 51, 100)), rng.randint(2, 4)
        n = rng.randint(packs, 9)
        chosen = [rng.randint(1, cap) for _ in range(rng.choice((2, 3, n)))]
        lengths = sorted((rng.choice(chosen) for _ in range(n)), reverse=True)
        yield lengths, cap


def test_no_bound_exceeds_the_fewest_packs():
    proven = 0
    for lengths, cap in windows(1, 1500):
        fewest, _ = by_every_assignment(lengths, cap, 1)
        for packs in range(1, fewest + 1):
            bound = column_generation(lengths, cap, packs, WORK)
            assert bound is None or packs < bound <= fewest, (lengths, cap, packs)
            proven += bound is not None
    assert proven > 1500


def test_larger_windows_agree_with_the_exact_search():
    rng = random.Random(2)
    proven = 0
    for _ in range(150):
        packs = rng.randint(3, 6)
        raw = [rng.uniform(0.6, 1.7) for _ in range(rng.randint(2 * packs, 4 * packs))]
        scale = rng.uniform(0.95, 1) * packs * 200 / sum(raw)
        lengths = sorted((max(1, round(scale * one)) for one in raw), reverse=True)
        if sum(lengths) > packs * 200 or lengths[0] > 200:
            continue
        bound = column_generation(lengths, 200, packs, WORK)
        if bound is not None:
            proven += 1
            assert bin_completion(lengths, 200, packs, 3 * 10**5) is None
    assert proven > 5


def test_wrong_weights_prove_nothing_wrong(monkeypatch):
    """Only the integers count: weights that the simplex method got wrong are worth little, but no false proof."""
    rng = random.Random(3)

    def wrong(master):
        return [rng.choice((-1.0, 0.0, 0.3, 0.9, 5.0)) for _ in range(len(master.weight) - 1)]

    monkeypatch.setattr(generation._Master, "weights", wrong)
    for lengths, cap in windows(4, 400):
        fewest, _ = by_every_assignment(lengths, cap, 1)
        bound = column_generation(lengths, cap, fewest, 10**6)
        assert bound is None, (lengths, cap)


def test_the_heaviest_pattern_is_that_of_every_subset():
    rng = random.Random(5)
    for _ in range(300):
        cap = rng.choice((10, 37, 100))
        kinds = sorted(rng.sample(range(1, cap + 1), rng.randint(1, 4)), reverse=True)
        counts = [rng.randint(1, 4) for _ in kinds]
        weights = [rng.randint(0, 40) for _ in kinds]
        weights[0] += 1
        found, patterns, work = heaviest_patterns(weights, kinds, counts, cap)
        subsets = [
            sum(w * k for w, k in zip(weights, chosen, strict=True))
            for chosen in product(*(range(count + 1) for count in counts))
            if sum(length * k for length, k in zip(kinds, chosen, strict=True)) <= cap
        ]
        assert found == max(subsets)
        assert work > 0
        for pattern in patterns:
            assert sum(kinds[kind] for kind in pattern) <= cap
            assert all(pattern.count(kind) <= count for kind, count in enumerate(counts))
        assert sum(weights[kind] for kind in patterns[0]) == found


def test_a_window_that_fits_is_never_refused():
    rng = random.Random(6)
    for _ in range(60):
        packs = rng.randint(2, 6)
        lengths = []
        for _ in range(packs):
            marks = sorted(rng.sample(range(1, 400), rng.randint(1, 4)))
            lengths += [end - start for start, end in zip([0, *marks], [*marks, 400], strict=True)]
        assert column_generation(sorted(lengths, reverse=True), 400, packs, WORK) is None


def test_little_work_ends_without_an_answer():
    lengths, cap = [34] * 7 + [26], 100
    assert column_generation(lengths, cap, 3, WORK) == 4
    assert column_generation(lengths, cap, 3, 100) is None
    assert column_generation([], cap, 3, WORK) is None
    rng = random.Random(7)
    many = sorted((rng.randint(300, 700) for _ in range(60)), reverse=True)
    least = generation._LEAST_WORK * len(set(many)) ** 2
    assert column_generation(many, 1000, 30, least) is None


@pytest.mark.parametrize("kind", [list, np.array])
def test_lengths_of_the_largest_searched_pack_do_not_overflow(kind):
    """Tables of tokens have 32 bits; packs of 2^29 tokens are the longest that any search sees."""
    cap = 1 << 29
    lengths = [cap * 34 // 100 + 1] * 7 + [cap * 26 // 100]
    assert column_generation(lengths, cap, 3, WORK) == 4
    assert heaviest_patterns([1, 2], kind([cap, cap]).tolist() if kind is np.array else [cap, cap], [1, 1], cap)[0] == 2
