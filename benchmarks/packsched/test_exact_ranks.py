"""The exact search finds what trying every placement finds."""

import random
from itertools import product

from benchmarks.packsched.exact_ranks import least_moved
from packsched.costs import DEFAULT_COST


def tried(lens, cap, packs, most_cost):
    """The fewest moved tokens of all placements of every segment in every pack of two ranks."""
    flat = [(length, rank) for rank, of in enumerate(lens) for length in of]
    best = None
    for places in product(range(2 * packs), repeat=len(flat)):
        used, spent, moved = [0] * (2 * packs), [0, 0], 0
        for (length, home), place in zip(flat, places, strict=True):
            used[place] += length
            spent[place // packs] += DEFAULT_COST(length)
            moved += length * (place // packs != home)
        if max(used) <= cap and max(spent) <= most_cost and (best is None or moved < best):
            best = moved
    return best


def test_the_exact_search_agrees_with_trying_every_placement():
    rng = random.Random(0)
    answers = []
    for _ in range(12):
        lens = [[rng.randint(1, 9) for _ in range(3)] for _ in range(2)]
        cap = -(-sum(map(sum, lens)) // 4) + rng.randint(0, 2)
        most = sum(map(DEFAULT_COST, lens[0] + lens[1])) * rng.randint(51, 60) // 100
        answers.append(least_moved(lens, cap, 2, most))
        assert answers[-1] == tried(lens, cap, 2, most)
    assert None in answers
    assert any(answers), "none of the windows had to move anything"
