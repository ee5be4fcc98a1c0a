"""Checks the arguments of every public call: lengths that are not positive integers are refused."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Set
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from packsched.errors import OversizedSegmentError, PackingError


def checked_lengths(encoded_lens: Iterable[SupportsIndex], packing_length: int | None = None) -> list[int]:
    """Returns the lengths as plain Python integers. O(n).

    Args:
        encoded_lens: Segment lengths in tokens, in insertion order: a list, a tuple, a 1-d integer array, ...
        packing_length: When given, the cap in tokens that every length must respect.

    Raises:
        PackingError: A length is not an integer or is smaller than 1 (the message names index and value), or the
            lengths have no order, as in a set.
        OversizedSegmentError: A length is larger than `packing_length`.

    >>> checked_lengths((5, 3), 8)
    [5, 3]
    """
    check_ordered("the lengths are", encoded_lens, "integers")
    if isinstance(encoded_lens, np.ndarray) and encoded_lens.ndim == 1 and holds_integers(encoded_lens):
        given = encoded_lens.tolist()
    else:
        given = list(encoded_lens)
    # Plain integers, the usual case, are checked all at once: checking each one would take longer than `select`.
    plain = {*map(type, given)} <= {int} and min(given, default=1) >= 1
    lengths: list[int] = given if plain else [checked_encoded_len(length, index) for index, length in enumerate(given)]
    if packing_length is not None and max(lengths, default=0) > packing_length:
        index = next(index for index, length in enumerate(lengths) if length > packing_length)
        raise OversizedSegmentError(index=index, encoded_len=lengths[index], packing_length=packing_length)
    return lengths


def check_ordered(subject: str, values: object, of_what: str) -> None:
    """Raises `PackingError` unless `values` is an iterable with an order: a set or a mapping has none. O(1)."""
    if not isinstance(values, Iterable) or isinstance(values, (Set, Mapping)):
        raise PackingError(f"{subject} {values!r} of type {type(values).__name__}; give a sequence of {of_what}.")


def checked_encoded_len(encoded_len: SupportsIndex, index: int) -> int:
    """Returns one segment's length as a plain integer of at least 1; `index` names it in the error. O(1)."""
    length = _as_int(encoded_len)
    if length is None:
        raise PackingError(
            f"segment {index} has encoded_len {encoded_len!r} of type {type(encoded_len).__name__}; "
            "lengths are integers (tokens).",
            index=index,
        )
    if length < 1:
        raise PackingError(
            f"segment {index} has encoded_len {length}; a segment has at least 1 token. "
            "Leave out samples that produced nothing instead of passing them on.",
            index=index,
        )
    return length


def checked_count(name: str, value: SupportsIndex, *, minimum: int = 1) -> int:
    """Returns the argument `name` as a plain integer, or raises `PackingError` if below `minimum`. O(1)."""
    count = _as_int(value)
    if count is None:
        raise PackingError(f"{name} is {value!r} of type {type(value).__name__}; it must be an integer.")
    if count < minimum:
        raise PackingError(f"{name} is {count}; it must be at least {minimum}.")
    return count


def holds_integers(values: npt.NDArray[Any] | np.generic) -> bool:
    """Returns whether an array of numpy, or a scalar, holds integers. Times are integers to `np.issubdtype`. O(1)."""
    return values.dtype.kind in "iu"


def _as_int(value: SupportsIndex) -> int | None:
    # A bool is an int to Python, and an index to numpy 1.26 and torch, but here always a mistake: a mask, or a flag.
    if type(value) is int:
        return value
    if isinstance(value, np.integer):
        return int(value) if holds_integers(value) else None
    if isinstance(value, (bool, np.bool_)) or str(getattr(value, "dtype", "")).endswith("bool"):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
