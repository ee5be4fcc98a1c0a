"""Seeded windows to measure on: realistic ones, and tight ones that are known to fit because full packs were cut.

Every generator takes a `random.Random`; the same seed gives the same windows.
"""

import random
from itertools import pairwise

CAP = 16384
KINDS = ("lognormal", "bimodal", "long tail", "fitted")


def realistic_lengths(rng: random.Random, kind: str, n: int, mean: float, cap: int = CAP) -> list[int]:
    """n lengths of about that mean, none over the cap.

    `fitted` follows the one real log there is (cap 14000, mean 2438): log-normal with sigma .35, clipped at a tenth
    of the mean.
    """
    if kind == "lognormal":
        raw = [rng.lognormvariate(0, 0.6) for _ in range(n)]
    elif kind == "bimodal":
        raw = [rng.gauss(3.0, 0.5) if rng.random() < 0.3 else rng.gauss(0.6, 0.15) for _ in range(n)]
    elif kind == "long tail":
        raw = [rng.paretovariate(1.6) for _ in range(n)]
    elif kind == "fitted":
        raw = [rng.lognormvariate(0, 0.35) for _ in range(n)]
    else:
        raise ValueError(kind)
    raw = [max(value, 0.1) for value in raw]
    scale = mean * n / sum(raw)
    return [max(1, min(cap, round(value * scale))) for value in raw]


def realistic_window(rng: random.Random, cap: int = CAP) -> tuple[list[int], int, int]:
    """(lengths, cap, micro_steps): 8-512 segments, 4-64 packs, load .5-.99 before clipping to the cap."""
    n = round(8 * 64 ** rng.random())
    micro_steps = rng.randint(4, max(4, min(64, n // 2)))
    load = rng.uniform(0.5, 0.99)
    lengths = realistic_lengths(rng, rng.choice(KINDS), n, load * micro_steps * cap / n, cap)
    return lengths, cap, micro_steps


def tight_window(
    rng: random.Random, packs: int, per_pack: int, slack: float = 0.0, *, even: bool = False, cap: int = CAP
) -> tuple[list[int], int, int]:
    """Full packs cut into pieces: at random places, or `even`: pieces within 30 % of each other.

    `slack` shortens every piece by that fraction (rounded at random, so that the window's slack is about that).
    """
    lengths = []
    for _ in range(packs):
        if even:
            weights = [rng.uniform(0.85, 1.15) for _ in range(per_pack)]
            marks = [round(cap * sum(weights[:k]) / sum(weights)) for k in range(per_pack + 1)]
        else:
            marks = [0, *sorted(rng.sample(range(1, cap), per_pack - 1)), cap]
        for start, end in pairwise(marks):
            exact = (end - start) * (1 - slack)
            lengths.append(max(1, int(exact + (rng.random() if slack else 0.5))))
    rng.shuffle(lengths)
    return lengths, cap, packs
