"""Finds the batch size that fills windows and overfills fewer than a given share of them, 1 in 10,000 by default.

Only the sum of a window has to fit, so a batch size may fill windows to 90 %; how close they come to full depends on
how much the lengths vary. The lengths seen are a sample, and later windows have lengths that the sample lacks. So:

1. The share of segments longer than each length is raised to its upper confidence limit: the largest share with which
   one sample in 20 shows as few of them (Clopper-Pearson). Mean, spread and the share of long segments rise together.
   Up to 3/n of all segments may be longer than the longest of n; these count as `longest`,
   by default `packing_length`.
2. 20,000 windows of such lengths are drawn. The result is the largest batch size with at most one infeasible window.

The estimate holds with 95 % confidence, for every distribution, if all segments are drawn independently from the same
distribution; while a model learns, its lengths may change. It holds for one rank and for whole windows: an epoch's
last, shorter window overfills more often, and may therefore have up to GA packs. After few segments the estimate is
cautious and recommends a low fill, because the next segment may be as long as a pack.

Each estimate costs about a second: 20,000 draws for each of about six batch sizes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from packsched.arguments import checked_count, checked_lengths
from packsched.binomial import upper_limits
from packsched.errors import PackingError
from packsched.window import plan_window

CONFIDENCE = 0.95
"""Share of samples for which the estimate holds."""
INFEASIBLE = 1e-4
"""Windows that may be infeasible, as a share."""
WINDOWS = 20_000
"""The most windows that are drawn for each batch size, unless a smaller share of infeasible ones is asked for."""
WINDOWS_AT_A_TIME = 1_000
"""How many windows are drawn at once; the first thousand already show a batch size that is far too large."""
MOST_ALLOWED = 10
"""The most infeasible windows that are allowed; a larger share draws fewer windows instead."""
LEAST_INFEASIBLE = 1e-5
"""The smallest share of infeasible windows that can be asked for; it takes 200,000 draws."""
ATOMS = 128
"""The most different lengths from which windows are drawn; each stands for all lengths between it and the next."""
PLANS = 100
"""How many windows are planned for each of two measures of doubt and each allowed window, the most doubtful first."""

Lengths = NDArray[np.int64]
Shares = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Holds a recommended batch size and its fill.

    Attributes:
        batch_size: Segments of a micro-step; a window has `micro_steps` times as many.
        fill: The mean fill over all packs with this batch size, from the mean of the lengths seen.
    """

    batch_size: int
    fill: float


def advise(
    encoded_lens: Iterable[SupportsIndex],
    packing_length: SupportsIndex,
    micro_steps: SupportsIndex,
    *,
    target: float = 0.9,
    infeasible: float = INFEASIBLE,
    promise: bool = True,
    longest: SupportsIndex | None = None,
    seed: int = 0,
) -> Advice:
    """Finds the batch size that brings the mean fill closest to `target` and overfills only few windows.

    Args:
        encoded_lens: Lengths in tokens of the segments seen so far; at least one.
        packing_length: Hard cap of a pack, in tokens.
        micro_steps: Packs of a window (gradient accumulation steps).
        target: Mean fill to aim for, above 0 and at most 1.
        infeasible: Fewer windows than this share may be infeasible, from 0.00001 up.
        promise: Whether to allow for lengths that the sample does not show. If not, the sample is taken as the
            distribution.
        longest: The longest length that a segment can have, if that is known; by default `packing_length`. The promise
            counts the lengths that the sample does not show as this long.
        seed: Seed of the drawn windows.

    Returns:
        The batch size (at least 1) whose mean fill is nearest to the target, or a smaller one if needed, so that fewer
        than `infeasible` of all whole windows of one rank are infeasible.

    Raises:
        OversizedSegmentError: A segment is longer than `packing_length`.
        PackingError: There are no lengths, or another argument is out of range.

    Cost: about a second; ten seconds for the smallest share of infeasible windows.

    >>> advise([300, 500, 700, 900] * 200, 8192, 4)
    Advice(batch_size=4, fill=0.29296875)
    """
    cap, steps = checked_count("packing_length", packing_length), checked_count("micro_steps", micro_steps)
    lens = checked_lengths(encoded_lens, cap)
    if not lens:
        raise PackingError("there are no lengths to advise on; give those of at least one segment.")
    most = cap if longest is None else checked_count("longest", longest)
    if not max(lens) <= most <= cap:
        raise PackingError(
            f"longest is {most}; it must be from {max(lens)}, the longest length seen, to packing_length, {cap}."
        )
    if not 0 < target <= 1:
        raise PackingError(f"target is {target}; it is a share of the packs' tokens, above 0 and at most 1.")
    if not LEAST_INFEASIBLE <= infeasible < 1:
        raise PackingError(f"infeasible is {infeasible}; it is a share of the windows, from {LEAST_INFEASIBLE} to 1.")
    mean = sum(lens) / len(lens)
    atoms, shares = population(lens, most, CONFIDENCE if promise else None)
    high = max(1, int(target * cap / mean + 0.5))
    low = 1  # one segment for each pack always fits; `high` + 1 does not fit, or exceeds the target
    while low < high:
        middle = (low + high + 1) // 2
        if overfills(atoms, shares, cap, steps, middle * steps, seed, infeasible):
            high = middle - 1
        else:
            low = middle
    return Advice(batch_size=low, fill=low * mean / cap)


def population(encoded_lens: Iterable[int], longest: int, confidence: float | None) -> tuple[Lengths, Shares]:
    """Returns a distribution of lengths from which the sample may have been drawn.

    Args:
        encoded_lens: The sample.
        longest: The longest length there can be.
        confidence: Confidence of the upper limit of each share. None takes the shares of the sample.

    Returns:
        At most `ATOMS` + 1 lengths, the longest first, and their shares.
    """
    longest_first = np.sort(np.asarray(encoded_lens, dtype=np.int64))[::-1]
    n = len(longest_first)
    # Each long segment counts alone, the others in groups: `k` segments are longer than the k-th.
    k = np.union1d(np.arange(min(n, ATOMS // 4)), np.linspace(0, n - 1, ATOMS * 3 // 4).astype(np.int64))
    longer = k / n if confidence is None else upper_limits(k, n, confidence)
    lens = np.concatenate([[longest], longest_first[k]])
    shares = np.diff(np.concatenate([longer, [1.0]]), prepend=0.0)
    return lens, shares / shares.sum()


def overfills(
    lens: Lengths,
    shares: Shares,
    packing_length: int,
    micro_steps: int,
    segments: int,
    seed: int,
    infeasible: float = INFEASIBLE,
) -> bool:
    """Returns whether `infeasible` or more of all windows do not fit, as far as drawn windows show.

    Args:
        lens: Lengths of the population, the longest first.
        shares: The share of each length.
        packing_length: Hard cap of a pack, in tokens.
        micro_steps: Packs of a window.
        segments: Segments of a window.
        seed: Seed of the drawn windows.
        infeasible: The share; half as many of the drawn windows may be infeasible.

    Returns:
        What two proofs that a window does not fit and one that it fits decide. Where no proof decides, the most
        doubtful windows are planned.
    """
    allowed = max(1, min(MOST_ALLOWED, int(WINDOWS * infeasible / 2)))
    windows = ceil(2 * allowed / infeasible)
    rng, refused = np.random.default_rng(seed), 0
    in_doubt = []
    for start in range(0, windows, WINDOWS_AT_A_TIME):
        counts = rng.multinomial(segments, shares, min(WINDOWS_AT_A_TIME, windows - start))
        tokens = np.cumsum(counts * lens, axis=1)  # tokens of the segments that are at least as long
        long = counts[:, 2 * lens > packing_length].sum(axis=1)
        proven = (tokens[:, -1] > micro_steps * packing_length) | (long > micro_steps)
        refused += int(proven.sum())
        if refused > allowed:
            return True
        # First fit, longest first, finds no place for a segment only if longer segments fill all packs too much for it.
        tight = (tokens - lens > micro_steps * (packing_length - lens)) & (np.cumsum(counts, axis=1) > micro_steps)
        in_doubt.append(counts[((counts > 0) & tight).any(axis=1) & ~proven])
    doubtful = np.concatenate(in_doubt)
    tokens, thirds = doubtful @ lens, doubtful @ (lens * (3 * lens > packing_length))
    most = [np.argsort(-doubt, kind="stable")[: PLANS * allowed] for doubt in (tokens, thirds)]
    for at in dict.fromkeys(np.concatenate(most).tolist()):
        refused += not _fits(np.repeat(lens, doubtful[at]), packing_length, micro_steps)
        if refused > allowed:
            return True
    return False


def _fits(encoded_lens: NDArray[Any], packing_length: int, micro_steps: int) -> bool:
    try:
        plan_window(encoded_lens.tolist(), packing_length, micro_steps)
    except PackingError:
        return False
    return True
