"""Decides which segments share a padding-free forward pass. Knows only lengths; needs only numpy."""

from packsched.advise import Advice, advise
from packsched.buffers import CarryBuffer, Pack, WindowBuffer
from packsched.costs import SegmentCost
from packsched.errors import (
    BufferOverflowError,
    InfeasibleWindowError,
    MissingBinpackingError,
    OversizedSegmentError,
    PackingError,
    UndecidedWindowError,
)
from packsched.layout import PackLayout
from packsched.ranks import RanksPlan, plan_ranks
from packsched.selection import select
from packsched.stats import FillStats
from packsched.window import WindowPlan, plan_window

__version__ = "0.1.0"

__all__ = [
    "Advice",
    "BufferOverflowError",
    "CarryBuffer",
    "FillStats",
    "InfeasibleWindowError",
    "MissingBinpackingError",
    "OversizedSegmentError",
    "Pack",
    "PackLayout",
    "PackingError",
    "RanksPlan",
    "SegmentCost",
    "UndecidedWindowError",
    "WindowBuffer",
    "WindowPlan",
    "advise",
    "plan_ranks",
    "plan_window",
    "select",
]
