"""The confidence limits are those of scipy, which packsched does without."""

import numpy as np
import pytest
from scipy.special import betaincinv

from packsched.binomial import upper_limits


@pytest.mark.parametrize("sample", [1, 2, 9, 512, 20_000])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_upper_limits_are_those_of_the_incomplete_beta_function(sample, confidence):
    counts = np.unique(np.linspace(0, sample - 1, 24).astype(np.int64))
    limits = upper_limits(counts, sample, confidence)
    np.testing.assert_allclose(limits, betaincinv(counts + 1.0, sample - counts, confidence), rtol=1e-8)
