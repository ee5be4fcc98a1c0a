"""The arguments that every entry point shares are checked alike."""

import numpy as np
import pytest

from packsched import OversizedSegmentError, PackingError, PackLayout
from packsched.arguments import checked_count, checked_lengths


def test_the_first_length_above_the_cap_is_named():
    assert checked_lengths([10, 4], 10) == [10, 4]
    with pytest.raises(OversizedSegmentError) as caught:
        checked_lengths([10, 4, 11, 12], 10)
    assert (caught.value.index, caught.value.encoded_len, caught.value.packing_length) == (2, 11, 10)


@pytest.mark.parametrize("unit", ["m8[s]", "m8"])
@pytest.mark.parametrize(
    "use",
    [
        checked_lengths,
        lambda times: checked_lengths(list(times)),
        lambda times: checked_count("packing_length", times[0]),
        lambda times: PackLayout.from_lengths([9]).remap(0, times),
        lambda times: PackLayout.from_lengths([9]).locate(times),
    ],
)
def test_times_are_no_integers(use, unit):
    """To numpy they are: `np.issubdtype(np.timedelta64, np.integer)` is true."""
    with pytest.raises(PackingError, match=r"timedelta|m8"):
        use(np.array([3, 2], dtype=unit))
