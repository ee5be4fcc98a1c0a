"""Which segments share a padding-free forward pass. Knows only lengths; needs only numpy."""

from packsched.buffer import CarryBuffer, Pack, WindowBuffer
from packsched.errors import (
    BufferOverflowError,
    InfeasibleWindowError,
    MissingBinpackingError,
    OversizedSegmentError,
    PackingError,
    UndecidedWindowError,
)
from packsched.layout import PackLayout
from packsched.selection import select
from packsched.stats import FillStats
from packsched.window import WindowPlan, plan_window

__all__ = [
    "BufferOverflowError",
    "CarryBuffer",
    "FillStats",
    "InfeasibleWindowError",
    "MissingBinpackingError",
    "OversizedSegmentError",
    "Pack",
    "PackLayout",
    "PackingError",
    "UndecidedWindowError",
    "WindowBuffer",
    "WindowPlan",
    "plan_window",
    "select",
]
