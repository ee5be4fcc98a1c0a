"""Where each segment lies in a pack: the record that builds the packed arrays and undoes them again.

    offsets      0        3           8      10     16
                 |  seg 0 |   seg 1   | seg 2 | padding |
    position_ids 0  1  2  0  1 ... 4  0   1   0  1  ...
    segment_ids  0  0  0  1  1 ... 1  2   2   3  3  ...

Padding, if asked for, is a segment of its own in every field, so that it is never attended by, nor counted
into, the last real one. A layout holds host integers only: reading it never waits for a device.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, TypeVar

import numpy as np
import numpy.typing as npt

from packsched.arguments import checked_count, checked_lengths
from packsched.errors import PackingError

Array = TypeVar("Array")

_MOST_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class PackLayout:
    """The lengths of a pack's segments in packed order, and everything that follows from them.

    Layouts are equal when their lengths and padding are. Arrays are built afresh on each access and belong to
    the caller. Make one with `from_lengths`.

    Attributes:
        encoded_lens: Length of each segment in tokens.
        padding: Tokens of padding after the last segment.

    >>> layout = PackLayout.from_lengths([3, 2])
    >>> layout.position_ids
    array([0, 1, 2, 0, 1])
    >>> packed = layout.concat([np.array([7, 8, 9]), np.array([5, 6])])
    >>> layout.split(packed)
    [array([7, 8, 9]), array([5, 6])]
    """

    encoded_lens: tuple[int, ...]
    padding: int = 0

    @classmethod
    def from_lengths(
        cls, encoded_lens: Iterable[SupportsIndex], *, pad_to_multiple_of: SupportsIndex | None = None
    ) -> PackLayout:
        """Lays the segments one after the other. O(n).

        Args:
            encoded_lens: Length of each segment in tokens, in packed order; none at all is an empty pack.
            pad_to_multiple_of: When given, padding fills the pack up to a multiple of this many tokens. An
                empty pack stays empty.

        Raises:
            PackingError: A length or the multiple is not a positive integer.
        """
        lengths = tuple(checked_lengths(encoded_lens))
        if pad_to_multiple_of is None:
            return cls(lengths)
        return cls(lengths, padding=-sum(lengths) % checked_count("pad_to_multiple_of", pad_to_multiple_of))

    @property
    def num_segments(self) -> int:
        """Number of segments, the padding not counted."""
        return len(self.encoded_lens)

    @property
    def tokens(self) -> int:
        """Tokens of the segments, the padding not counted."""
        return sum(self.encoded_lens)

    @property
    def total(self) -> int:
        """Length of the packed arrays, the padding included."""
        return self.tokens + self.padding

    @functools.cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each segment starts in the pack, one integer per segment."""
        return tuple(itertools.accumulate(self.encoded_lens, initial=0))[:-1]

    @property
    def cu_seqlens(self) -> npt.NDArray[np.int32]:
        """Boundaries for varlen attention: int32, 0 first, one entry more than there are segments.

        Padding is one segment more, at the end.

        Raises:
            PackingError: The pack is longer than int32 can count, which is what varlen kernels take.
        """
        if self.total > _MOST_TOKENS:
            raise PackingError(
                f"the pack has {self.total} tokens, {self.total - _MOST_TOKENS} more than the {_MOST_TOKENS} that "
                "cu_seqlens can hold: varlen kernels take int32. Use a smaller packing_length."
            )
        return np.cumsum([0, *self._spans], dtype=np.int32)

    @property
    def max_seqlen(self) -> int:
        """Longest span in `cu_seqlens`, the padding included; 0 for an empty pack."""
        return max(self._spans, default=0)

    @property
    def position_ids(self) -> npt.NDArray[np.int64]:
        """Position of each packed token within its segment: int64 of shape `(total,)`, restarting at 0."""
        return np.concatenate([np.arange(0), *map(np.arange, self._spans)]).astype(np.int64, copy=False)

    @property
    def segment_ids(self) -> npt.NDArray[np.int32]:
        """Segment of each packed token: int32 of shape `(total,)`. The id of padding is `num_segments`."""
        return np.repeat(np.arange(len(self._spans), dtype=np.int32), self._spans)

    def remap(self, segment: SupportsIndex, positions: Any) -> Any:
        """Moves positions within one segment to where they are in the pack.

        An integer gives an integer, a sequence of integers a list, and an array an array of its own kind, with
        64 bits (narrower integers would overflow). Integers, sequences and numpy arrays are checked. Of arrays
        of other frameworks only the dtype is: reading their values would make the host wait for the device, so
        check those where they are made.

        Args:
            segment: Index of the segment within the pack.
            positions: Positions in `[0, encoded_lens[segment])`, of any shape.

        Raises:
            PackingError: There is no such segment, the positions are not integers, or one that could be checked
                lies outside the segment.

        >>> PackLayout.from_lengths([3, 2]).remap(1, [0, 1])
        [3, 4]
        """
        index = checked_count("segment", segment, minimum=0)
        if index >= self.num_segments:
            raise PackingError(f"segment is {index}, but the pack has {self.num_segments} segments.")
        host = _on_host(positions)
        if host is None:
            return _widened(positions) + self.offsets[index]
        _check_inside(host, self.encoded_lens[index], f"segment {index}, whose encoded_len is")
        return _like(positions, host + self.offsets[index])

    def locate(self, packed_positions: Any) -> tuple[Any, Any]:
        """Tells which segment each packed position belongs to and where in it: undoes `remap`.

        This reads the values, so positions on a device must be brought to the host first. O(m log n).

        Args:
            packed_positions: An integer, a sequence of integers, or anything numpy reads as an integer array.

        Returns:
            `(segments, positions)`: two integers, two lists, or two int64 arrays of the input's shape.

        Raises:
            PackingError: The positions are not integers on the host, or one lies outside the pack or in its
                padding.

        >>> PackLayout.from_lengths([3, 2]).locate([0, 4])
        ([0, 1], [0, 1])
        """
        host = _on_host(packed_positions)
        if host is None:
            host = _as_integers(packed_positions)
        _check_inside(host, self.tokens, f"the pack's {self.num_segments} segments, which without padding hold")
        starts = np.array(self.offsets, dtype=np.int64)
        segments = np.searchsorted(starts, host, side="right") - 1
        positions = host - starts[segments] if starts.size else host
        return _like(packed_positions, segments), _like(packed_positions, positions)

    def concat(self, arrays: Sequence[Array], *, pad_value: float | None = None) -> Array:
        """Joins one array per segment along the first dimension. One copy; gradients flow through it.

        Works for numpy arrays and for the arrays of any framework whose module offers `concatenate` and
        `full` (torch and JAX do). Nothing is imported: the framework is found among the loaded modules.

        Args:
            arrays: One array per segment, of shape `(encoded_len, ...)`, all of one framework and dtype.
            pad_value: What the padding holds; required if the layout is padded.

        Returns:
            The packed array of shape `(total, ...)`.

        Raises:
            PackingError: The number of arrays or a length does not match the layout, the pack is empty (there
                is no array to take the framework from), or the padding has no value.
        """
        if len(arrays) != self.num_segments:
            raise PackingError(f"got {len(arrays)} arrays for {self.num_segments} segments; give one for each.")
        if not arrays:
            raise PackingError("an empty pack has nothing to concatenate; build its dummy input instead.")
        for index, (array, length) in enumerate(zip(arrays, self.encoded_lens, strict=True)):
            shape = tuple(getattr(array, "shape", ()))
            if shape[:1] != (length,):
                raise PackingError(
                    f"array {index} has shape {shape}, but segment {index} has encoded_len {length}; "
                    f"the first dimension must be {length}."
                )
        parts = list(arrays)
        framework = _framework_of(parts[0])
        if self.padding:
            if pad_value is None:
                raise PackingError(f"the layout has {self.padding} tokens of padding; give pad_value.")
            parts.append(_padding_like(framework, parts[0], self.padding, pad_value))
        joined: Array = framework.concatenate(parts)
        return joined

    def split(self, packed: Any) -> list[Any]:
        """Cuts a packed array into one slice per segment and leaves the padding out: undoes `concat`.

        Slices of numpy arrays and tensors are views. O(n).

        Args:
            packed: Anything that slices and has `len(packed) == total`: hidden states, logits, a list, ...

        Raises:
            PackingError: The length is not `total`.
        """
        if len(packed) != self.total:
            raise PackingError(
                f"got {len(packed)} packed positions, but the layout has {self.total} "
                f"({self.num_segments} segments, {self.padding} tokens of padding)."
            )
        return [packed[start : start + length] for start, length in zip(self.offsets, self.encoded_lens, strict=True)]

    @property
    def _spans(self) -> tuple[int, ...]:
        return (*self.encoded_lens, self.padding) if self.padding else self.encoded_lens


def _on_host(positions: Any) -> npt.NDArray[np.int64] | None:
    """Returns positions whose values are known on the host, or None for an array of another framework."""
    if isinstance(positions, np.ndarray | np.generic | int | Sequence):
        return _as_integers(positions)
    return None


def _as_integers(positions: Any) -> npt.NDArray[np.int64]:
    try:
        array = np.asarray(positions)
    except (TypeError, ValueError) as error:  # ragged, or on a device
        raise PackingError(
            f"positions of type {type(positions).__name__} cannot be read as one integer array on the host: {error}"
        ) from None
    # An empty list has numpy's default dtype, float64; it holds no value that could be wrong.
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise _not_integers(array.dtype)
    return array.astype(np.int64)


def _widened(positions: Any) -> Any:
    """Positions of another framework as integers that an offset can be added to, without reading their values."""
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
    return positions.to(_framework_of(positions).int64)


def _not_integers(dtype: object) -> PackingError:
    hint = "; np.flatnonzero turns a mask into positions" if str(dtype) == "bool" else ""
    return PackingError(f"positions have dtype {dtype}; they must be integers{hint}.")


def _check_inside(positions: npt.NDArray[np.int64], limit: int, what: str) -> None:
    outside = positions[(positions < 0) | (positions >= limit)]
    if outside.size:
        raise PackingError(f"position {outside.flat[0]} is outside {what} {limit} tokens.")


def _like(given: Any, result: npt.NDArray[np.int64]) -> Any:
    """Gives plain integers back to a caller who passed plain integers."""
    return result.tolist() if isinstance(given, int | Sequence) else result


def _framework_of(array: object) -> Any:
    """Returns the loaded top-level module that the array's class, or a base of it, comes from.

    An array cannot exist before its framework is loaded, so the list of loaded modules is enough to find it, and
    callers need not pass a `concatenate` of their own.
    """
    for cls in type(array).__mro__:
        module = sys.modules.get(cls.__module__.partition(".")[0])
        if hasattr(module, "concatenate") and hasattr(module, "full"):
            return module
    # JAX keeps its array class in another package (jaxlib), but names its namespace as the array API asks.
    namespace = getattr(array, "__array_namespace__", None)
    if namespace is not None and hasattr(namespace(), "concatenate"):
        return namespace()
    raise PackingError(
        f"cannot concatenate objects of type {type(array).__name__}; give arrays of numpy, torch or JAX."
    )


def _padding_like(framework: Any, array: Any, padding: int, pad_value: float) -> Any:
    shape = (padding, *array.shape[1:])
    if framework is np:
        return np.full(shape, pad_value, dtype=array.dtype)
    return framework.full(shape, pad_value, dtype=array.dtype, device=array.device)
