"""Selects the buffered segments that go into the next packed forward pass.

There are three policies. Each selects the oldest segment (index 0), so that no segment waits for ever; none splits a
segment or exceeds the cap.

- `fifo` scans in insertion order and takes each segment that still fits. O(n).
- `binpacking` packs the segments that fit next to the oldest one into bins of constant volume. The best bin replaces
  FIFO's answer only if it is strictly longer. O(n * bins). The result depends on the heuristic of the installed
  `binpacking`, so its version is restricted: 1.5.2 puts an item into the fullest bin that has room, 2.0.x into the
  emptiest, and the two select different segments in most states of a buffer.
- `optimal` finds the fullest possible pack. If FIFO's pack is as full, it returns that one. Otherwise the newest
  segment in the pack is as old as possible, then the next newest, and so on, so that no segment waits longer than
  necessary. O(n * packing_length / 64), less where segments fit exactly. The bitsets take at most 16 MiB, or
  `sqrt(n) * packing_length / 4` bytes where that is more. A call that would need more than 2 GiB is refused.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
from collections.abc import Iterable
from math import gcd
from types import ModuleType
from typing import Literal, SupportsIndex, get_args

from packsched.arguments import checked_count, checked_lengths
from packsched.errors import MissingBinpackingError, PackingError
from packsched.subset_sum import fill_room, history_bytes, keeps_whole_history, leave_out

Policy = Literal["fifo", "binpacking", "optimal"]
POLICIES: tuple[str, ...] = get_args(Policy)


def select(
    encoded_lens: Iterable[SupportsIndex], packing_length: SupportsIndex, *, policy: Policy = "binpacking"
) -> list[int]:
    """Selects the segments of the next pack: the oldest, and others that fit next to it.

    The same lengths in the same order give the same answer in every process. The total is never below that of
    `fifo`, and on equal totals the answer of `binpacking` *is* that of `fifo`.

    Args:
        encoded_lens: Lengths in tokens of the buffered segments, in insertion order; index 0 is the oldest.
        packing_length: The hard cap of a pack, in tokens.
        policy: `"fifo"`, `"binpacking"` or `"optimal"`; the header of this module states the cost of each.

    Returns:
        Indices into `encoded_lens`, ascending, starting with 0; empty if there are no segments.

    Raises:
        PackingError: A length or the cap is not a positive integer, or the policy is unknown.
        OversizedSegmentError: Any segment, not only the oldest, is longer than `packing_length`.
        MissingBinpackingError: Policy `binpacking` needs a module that is absent or of another version.

    >>> lens = [4, 1, 5, 3]
    >>> select(lens, 9, policy="fifo")  # 4 + 1 + 3 = 8
    [0, 1, 3]
    >>> select(lens, 9)  # 4 + 5 = 9
    [0, 2]
    >>> select([1, 6, 4, 3, 7], 8, policy="optimal")  # 1 + 4 + 3 = 8; 1 + 7 would take a newer segment
    [0, 2, 3]
    >>> select([], 9)
    []
    """
    check_policy(policy)
    cap = checked_count("packing_length", packing_length)
    lengths = checked_lengths(encoded_lens, cap)
    if not lengths:
        return []
    if policy == "fifo" or lengths[0] == cap:  # there is nothing to choose next to a segment that fills the pack
        return _fifo(lengths, cap)
    if policy == "binpacking":
        return _binpacking_or_fifo(lengths, cap)
    return _optimal(lengths, cap)


def check_policy(policy: str) -> None:
    """Raises `PackingError` unless `policy` is a name that `select` knows. O(1)."""
    if policy not in POLICIES:
        raise PackingError(f"unknown policy {policy!r}; choose one of {', '.join(map(repr, POLICIES))}.")


def require_binpacking() -> ModuleType:
    """Imports `binpacking` and checks that its version decides as this project expects. O(1) after the first.

    Raises:
        MissingBinpackingError: The module is absent, or its version is outside the range that
            `pyproject.toml` declares; the message names both ways out.
    """
    try:
        import binpacking
    except ImportError as error:
        raise MissingBinpackingError(
            f"policy 'binpacking' needs the module binpacking, which fails to import ({error}). {_WAYS_OUT}"
        ) from error
    version = _installed_version()
    if version is None or not _SUPPORTED[0] <= _release(version) < _SUPPORTED[1]:
        found = "of unknown version" if version is None else version
        raise MissingBinpackingError(
            f"policy 'binpacking' needs binpacking {_REQUIREMENT}, but the one installed is {found}; "
            f"other versions select other segments. {_WAYS_OUT}",
            installed=version,
        )
    return binpacking  # type: ignore[no-any-return,unused-ignore]


_MOST_BYTES = 1 << 31
_SUPPORTED = ((2, 0, 1), (3,))
_REQUIREMENT = ">=2.0.1,<3"
_WAYS_OUT = f"Install it (pip install 'binpacking{_REQUIREMENT}') or ask for policy 'fifo' or 'optimal'."


def _fifo(lengths: list[int], cap: int) -> list[int]:
    selected, used, full = [], 0, cap - min(lengths)
    for index, length in enumerate(lengths):
        if used + length <= cap:
            selected.append(index)
            used += length
            if used > full:  # not even the shortest fits any more
                break
    return selected


def _optimal(lengths: list[int], cap: int) -> list[int]:
    fifo = _fifo(lengths, cap)
    free = cap - _total(lengths, fifo)
    if free == 0 or len(fifo) == len(lengths):
        return fifo
    # Sums of multiples of a unit are multiples of it, so counting in units shortens the bitsets.
    others = lengths[1:]
    unit = gcd(*others)
    if unit > 1:
        others = [length // unit for length in others]
    room = (cap - lengths[0]) // unit
    spare = room - (cap - lengths[0] - free) // unit
    if spare == 0:
        return fifo
    excess = sum(others) - room
    # Where nearly all segments fit, sums of the few that do not are far smaller than those of the pack.
    if 2 * (excess + spare) < room and keeps_whole_history(len(others), excess + spare):
        left_out = leave_out(others, excess, excess + spare - 1)
        return fifo if left_out is None else [at for at in range(len(lengths)) if at - 1 not in left_out]
    needed = history_bytes(len(others), room)
    if needed > _MOST_BYTES:
        raise PackingError(
            f"policy 'optimal' would need {needed} bytes for {len(lengths)} segments and packing_length {cap}, more "
            f"than {_MOST_BYTES}. Use policy 'binpacking', or lengths in larger units."
        )
    candidate = [0, *(at + 1 for at in fill_room(others, room))]
    return candidate if _total(lengths, candidate) > cap - free else fifo


def _binpacking_or_fifo(lengths: list[int], cap: int) -> list[int]:
    baseline = _fifo(lengths, cap)
    residual = cap - lengths[0]
    binpacking = require_binpacking()
    items = [(index, length) for index, length in enumerate(lengths) if index > 0 and length <= residual]
    if not items:
        return baseline
    bins = binpacking.to_constant_volume(items, residual, weight_pos=1)
    # The heuristic does not define the order of its bins; this key makes the choice among them unique.
    rests = [sorted(index for index, _ in found) for found in bins]
    best = min(rests, key=lambda rest: (-_total(lengths, rest), len(rest), rest))
    candidate = [0, *best]
    return candidate if _total(lengths, candidate) > _total(lengths, baseline) else baseline


def _total(lengths: list[int], indices: list[int]) -> int:
    return sum(lengths[index] for index in indices)


@functools.cache
def _installed_version() -> str | None:
    try:
        return importlib.metadata.version("binpacking")
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, numbers.group().split("."))) if numbers else ()
