"""Measures how full the packs were, as sums that stay correct when steps and ranks are merged.

With a fixed number of packs and no carry, the mean fill depends only on the window's tokens and not on the packing.
So one number could mislead: the fill over all packs hides how well they were used, and the fill over the non-empty
packs hides idle micro-steps. Both are kept, with the number of packs used and its lower bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import SupportsIndex

from packsched.arguments import checked_count
from packsched.errors import PackingError


@dataclass(frozen=True, kw_only=True)
class FillStats:
    """Sums up how full packs were. `FillStats()` is neutral in `merge`.

    To count: `from_packs`, `merge`. To log: `metrics`. To send to other ranks: `as_dict`, `from_dict`.

    Attributes:
        windows: How many windows (of one rank each) are summed up here.
        segments: Segments in these windows.
        tokens: Tokens of these segments.
        capacity: Tokens that all packs could have held, empty ones included.
        capacity_non_empty: Tokens that the non-empty packs could have held.
        non_empty_packs: Packs with at least one segment.
        lower_bound: The fewest packs that these windows can need.
        min_fill: Fill of the least filled non-empty pack; 1.0 while there is none.

    >>> step = FillStats.from_packs([9, 3, 0], 10, segments=4)
    >>> step.metrics()["fill"], step.metrics()["fill_non_empty"]
    (0.4, 0.6)
    """

    windows: int = 0
    segments: int = 0
    tokens: int = 0
    capacity: int = 0
    capacity_non_empty: int = 0
    non_empty_packs: int = 0
    lower_bound: int = 0
    min_fill: float = 1.0

    @classmethod
    def from_packs(
        cls,
        pack_lens: Iterable[SupportsIndex],
        packing_length: SupportsIndex,
        *,
        segments: SupportsIndex,
        lower_bound: SupportsIndex | None = None,
    ) -> FillStats:
        """Counts the packs of one rank's window. O(packs).

        Args:
            pack_lens: Tokens in each pack, padding not counted; 0 for an empty pack, which is counted too.
            packing_length: The cap of a pack, in tokens.
            segments: How many segments the packs hold together.
            lower_bound: The fewest packs that can be needed, from a `WindowPlan`; by default the tokens over the
                cap, rounded up.

        Raises:
            PackingError: A number is negative or not an integer, or a pack exceeds the cap.
        """
        cap = checked_count("packing_length", packing_length)
        lens = [checked_count(f"pack_lens[{i}]", n, minimum=0) for i, n in enumerate(pack_lens)]
        for index, length in enumerate(lens):
            if length > cap:
                raise PackingError(
                    f"pack {index} has {length} tokens, which is {length - cap} more than packing_length "
                    f"{cap}; a pack never exceeds its cap, so check that padding is left out."
                )
        non_empty = [length for length in lens if length]
        bound = -(-sum(lens) // cap) if lower_bound is None else lower_bound
        return cls(
            windows=1,
            segments=checked_count("segments", segments, minimum=0),
            tokens=sum(lens),
            capacity=len(lens) * cap,
            capacity_non_empty=len(non_empty) * cap,
            non_empty_packs=len(non_empty),
            lower_bound=checked_count("lower_bound", bound, minimum=0),
            min_fill=min(non_empty, default=cap) / cap,
        )

    def merge(self, other: FillStats) -> FillStats:
        """Returns the statistics of both together; order and grouping do not matter. O(1)."""
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return FillStats(**{**sums, "min_fill": min(self.min_fill, other.min_fill)})

    def metrics(self) -> dict[str, float]:
        """Returns the numbers to log, by name. O(1).

        Fills are shares of capacity; packs, bound and segments are means per window of one rank. Without a
        non-empty pack every fill is 0.0: nothing was filled.
        """
        windows = max(self.windows, 1)
        return {
            "fill": self.tokens / max(self.capacity, 1),
            "fill_non_empty": self.tokens / max(self.capacity_non_empty, 1),
            "min_fill": self.min_fill if self.non_empty_packs else 0.0,
            "non_empty_packs": self.non_empty_packs / windows,
            "lower_bound": self.lower_bound / windows,
            "segments": self.segments / windows,
        }

    def as_dict(self) -> dict[str, int | float]:
        """Returns plain numbers for transport between ranks; `from_dict` undoes it. O(1).

        For a reduction instead of a gather: `min_fill` takes the minimum, every other entry the sum.
        """
        return asdict(self)

    @classmethod
    def from_dict(cls, numbers: Mapping[str, int | float]) -> FillStats:
        """Undoes `as_dict`; whole floats, as a reduction returns them, are fine. O(1).

        Raises:
            PackingError: The names are not those of `as_dict`, or a number is negative or a fraction.

        >>> FillStats.from_dict({**FillStats().as_dict(), "tokens": 2.5})
        Traceback (most recent call last):
            ...
        packsched.errors.PackingError: tokens is 2.5; it counts something, so it must be a whole number of at least 0. \
Add the numbers of as_dict up instead of averaging them.
        """
        names = [f.name for f in fields(cls)]
        if sorted(numbers) != sorted(names):
            raise PackingError(f"the numbers are named {sorted(numbers)} instead of {sorted(names)}.")
        for name, number in numbers.items():
            if name != "min_fill" and not (0 <= number < float("inf") and number == int(number)):
                raise PackingError(
                    f"{name} is {number!r}; it counts something, so it must be a whole number of at least 0. "
                    "Add the numbers of as_dict up instead of averaging them."
                )
        counts = {name: int(number) for name, number in numbers.items() if name != "min_fill"}
        if not 0 <= numbers["min_fill"] <= 1:
            raise PackingError(f"min_fill is {numbers['min_fill']!r}; it is a share of a pack, from 0 to 1.")
        return cls(**counts, min_fill=numbers["min_fill"])
