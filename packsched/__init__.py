"""Which segments share a padding-free forward pass. Knows only lengths; needs only numpy."""

from packsched.errors import (
    BufferOverflowError,
    InfeasibleWindowError,
    MissingBinpackingError,
    OversizedSegmentError,
    PackingError,
    UndecidedWindowError,
)

__all__ = [
    "BufferOverflowError",
    "InfeasibleWindowError",
    "MissingBinpackingError",
    "OversizedSegmentError",
    "PackingError",
    "UndecidedWindowError",
]
