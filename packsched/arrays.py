"""Joins arrays of any framework and moves positions, for `PackLayout`, without importing a framework."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from packsched.arguments import holds_integers
from packsched.errors import PackingError


def positions_on_host(positions: Any) -> npt.NDArray[np.int64] | None:
    """Returns positions whose values are known on the host, or None for an array of another framework."""
    if isinstance(positions, np.ndarray | np.generic | int | Sequence):
        return as_integers(positions)
    return None


def as_integers(positions: Any) -> npt.NDArray[np.int64]:
    """Returns positions as an int64 array of the host, or raises `PackingError`."""
    try:
        array = np.asarray(positions)
    except (TypeError, ValueError) as error:  # ragged, or on a device
        raise PackingError(
            f"positions of type {type(positions).__name__} cannot be read as one integer array on the host: {error}"
        ) from None
    # An empty list has numpy's default dtype, float64; it holds no value that could be wrong.
    if array.size and not holds_integers(array):
        raise _not_integers(array.dtype)
    return array.astype(np.int64)


def widened(positions: Any) -> Any:
    """Returns positions of another framework as integers to which an offset can be added; reads no values."""
    dtype = getattr(positions, "dtype", None)
    kind = str(dtype).rpartition(".")[2]  # torch calls it torch.int64, JAX int64
    if dtype is None and not hasattr(positions, "__add__"):
        raise PackingError(f"positions are {positions!r}; give an integer, a sequence or an array of integers.")
    if dtype is None or kind == "int64":
        return positions
    if not kind.startswith(("int", "uint")) and 0 not in positions.shape:
        raise _not_integers(kind)
    if hasattr(positions, "astype"):
        return positions.astype("int64")
    return positions.to(framework_of(positions).int64)


def _not_integers(dtype: object) -> PackingError:
    hint = "; np.flatnonzero turns a mask into positions" if str(dtype) == "bool" else ""
    return PackingError(f"positions have dtype {dtype}; they must be integers{hint}.")


def check_inside(positions: npt.NDArray[np.int64], limit: int, what: str) -> None:
    """Raises `PackingError` when a position is not in `[0, limit)`; `what` says what holds that many tokens."""
    outside = positions[(positions < 0) | (positions >= limit)]
    if outside.size:
        raise PackingError(f"position {outside.flat[0]} is outside {what} {limit} tokens.")


def in_kind(given: Any, result: npt.NDArray[np.int64]) -> Any:
    """Gives plain integers back to a caller who passed plain integers."""
    return result.tolist() if isinstance(given, int | Sequence) else result


def framework_of(array: object) -> Any:
    """Returns the loaded top-level module that the array's class, or a base of it, comes from.

    An array cannot exist before its framework is loaded, so the list of loaded modules is enough to find it, and
    callers need not pass a `concatenate` function.
    """
    for cls in type(array).__mro__:
        module = sys.modules.get(cls.__module__.partition(".")[0])
        if hasattr(module, "concatenate") and hasattr(module, "full"):
            return module
    # JAX keeps its array class in another package (jaxlib), but gives its namespace as the array API requires.
    namespace = getattr(array, "__array_namespace__", None)
    if namespace is not None and hasattr(namespace(), "concatenate"):
        return namespace()
    raise PackingError(
        f"cannot concatenate objects of type {type(array).__name__}; give arrays of numpy, torch or JAX."
    )


def padding_like(framework: Any, array: Any, padding: int, pad_value: float, axis: int) -> Any:
    """Returns `padding` positions along `axis` that hold `pad_value`, otherwise shaped and typed as `array`."""
    shape = (*array.shape[:axis], padding, *array.shape[axis + 1 :])
    if framework is np:
        return np.full(shape, pad_value, dtype=array.dtype)
    return framework.full(shape, pad_value, dtype=array.dtype, device=array.device)


def check_pad_value(pad_value: float, array: Any) -> None:
    """Raises `PackingError` when the array's dtype would turn `pad_value` into another number."""
    name = str(array.dtype).rpartition(".")[2]  # torch calls it torch.int64, numpy int64
    try:
        dtype = np.dtype(name)
    except TypeError:
        return  # a float type that numpy does not know, such as bfloat16; it rounds, as every float does
    with np.errstate(all="ignore"):
        cast = np.asarray(pad_value).astype(dtype)
    held = np.isfinite(cast) == np.isfinite(pad_value) if dtype.kind in "fc" else cast == pad_value
    if not held:
        raise PackingError(
            f"pad_value is {pad_value!r}, which {name} cannot hold: it would become {cast.item()!r}. "
            "Give a value of the arrays' dtype."
        )
