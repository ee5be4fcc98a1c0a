"""The arguments that every entry point shares are checked alike."""

import pytest

from packsched import OversizedSegmentError
from packsched.arguments import checked_lengths


def test_the_first_length_above_the_cap_is_named():
    assert checked_lengths([10, 4], 10) == [10, 4]
    with pytest.raises(OversizedSegmentError) as caught:
        checked_lengths([10, 4, 11, 12], 10)
    assert (caught.value.index, caught.value.encoded_len, caught.value.packing_length) == (2, 11, 10)
