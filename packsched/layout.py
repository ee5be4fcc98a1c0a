"""Where each segment lies in a pack: the record that builds the packed arrays and undoes them again.

    offsets      0        3           8      10     16
                 |  seg 0 |   seg 1   | seg 2 | padding |
    position_ids 0  1  2  0  1 ... 4  0   1   0  1  ...
    segment_ids  0  0  0  1  1 ... 1  2   2   3  3  ...

Padding comes behind each segment (`segment_multiple`) and behind the last one (`pad_to_multiple_of`). Its positions
start anew and its `segment_ids` are those of no segment, so it is never attended by a real token, nor counted into one.
A layout holds host integers only: reading it never waits for a device.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, TypeVar

import numpy as np
import numpy.typing as npt

from packsched.arguments import checked_count, checked_lengths
from packsched.arrays import (
    as_integers,
    check_inside,
    check_pad_value,
    framework_of,
    in_kind,
    padding_like,
    positions_on_host,
    widened,
)
from packsched.errors import PackingError

Array = TypeVar("Array")

_MOST_TOKENS = 2**31 - 1


@dataclass(frozen=True, repr=False)
class PackLayout:
    """The lengths of a pack's segments in packed order, and everything that follows from them.

    Layouts are equal when their lengths and padding are. Arrays are built anew on each access and belong to
    the caller.

    Making one:
        `from_lengths`
    Sizes (host integers):
        `num_segments`, `tokens`, `total`, `offsets`, `max_seqlen`
    What a model's forward takes (numpy arrays):
        `position_ids`, `segment_ids`, `cu_seqlens`, `cu_seqlens_padded`
    From segments to the pack and back:
        `concat` and `split` for arrays, `remap` and `locate` for positions

    Attributes:
        encoded_lens: Length of each segment in tokens.
        padding: Tokens of padding behind the last segment's own.
        segment_multiple: Each segment is padded to a multiple of this many tokens; 1 pads none.

    >>> layout = PackLayout.from_lengths([3, 2])
    >>> layout
    PackLayout(2 segments, 5 tokens)
    >>> layout.position_ids
    array([0, 1, 2, 0, 1])
    >>> packed = layout.concat([np.array([7, 8, 9]), np.array([5, 6])])
    >>> layout.split(packed)
    [array([7, 8, 9]), array([5, 6])]
    """

    encoded_lens: tuple[int, ...]
    padding: int = 0
    segment_multiple: int = 1

    @classmethod
    def from_lengths(
        cls,
        encoded_lens: Iterable[SupportsIndex],
        *,
        pad_to_multiple_of: SupportsIndex | None = None,
        segment_multiple: SupportsIndex = 1,
    ) -> PackLayout:
        """Lays the segments one behind the other. O(n).

        Args:
            encoded_lens: Length of each segment in tokens, in packed order; none at all is an empty pack.
            pad_to_multiple_of: When given, padding behind the last segment fills the pack up to a multiple of
                this many tokens. An empty pack stays empty.
            segment_multiple: Padding behind each segment fills it up to a multiple of this many tokens: tensor
                parallelism, 2 x context parallelism, the rows of FP8 kernels.

        Raises:
            PackingError: A length or a multiple is not a positive integer.

        >>> PackLayout.from_lengths([3, 2], pad_to_multiple_of=8)
        PackLayout(2 segments, 5 tokens, 3 of padding)
        >>> PackLayout.from_lengths([3, 5], segment_multiple=4).cu_seqlens_padded
        array([ 0,  4, 12], dtype=int32)
        """
        lengths = tuple(checked_lengths(encoded_lens))
        multiple = checked_count("segment_multiple", segment_multiple)
        if pad_to_multiple_of is None:
            return cls(lengths, segment_multiple=multiple)
        filled = sum(length + -length % multiple for length in lengths)
        return cls(lengths, -filled % checked_count("pad_to_multiple_of", pad_to_multiple_of), multiple)

    def __repr__(self) -> str:
        padding = self.total - self.tokens
        return (
            f"PackLayout({self.num_segments} segments, {self.tokens} tokens"
            + (f", {padding} of padding" if padding else "")
            + ")"
        )

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
        return self._starts[-1] + self.padding

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each segment starts in the pack, one integer per segment."""
        return self._starts[:-1]

    @property
    def cu_seqlens(self) -> npt.NDArray[np.int32]:
        """Real lengths summed up: int32, 0 first. Padding behind the last segment's own is one entry more.

        With `segment_multiple` 1 these are the boundaries in the packed arrays, which is what varlen kernels take.
        With a larger one, kernels take them together with `cu_seqlens_padded` (Transformer Engine's `cu_seqlens_q`
        and `cu_seqlens_q_padded`); one that takes a single list gets `cu_seqlens_padded`.

        Raises:
            PackingError: The pack is longer than int32 can count, which is what varlen kernels take.
        """
        return self._summed((*self.encoded_lens, self.padding))

    @property
    def cu_seqlens_padded(self) -> npt.NDArray[np.int32]:
        """Boundaries in the packed arrays: `cu_seqlens` with each segment's own padding. As long, int32.

        Raises:
            PackingError: As for `cu_seqlens`.
        """
        return self._summed((*np.diff(self._starts).tolist(), self.padding))

    @property
    def max_seqlen(self) -> int:
        """Longest span in `cu_seqlens_padded`, so at least that in `cu_seqlens`; 0 for an empty pack."""
        return max(*np.diff(self._starts).tolist(), self.padding, 0, 0)

    @property
    def position_ids(self) -> npt.NDArray[np.int64]:
        """Position of each packed token within its segment: int64 of shape `(total,)`, restarting at 0."""
        return np.concatenate([np.arange(0), *(np.arange(n) for n, _ in self._runs)]).astype(np.int64, copy=False)

    @property
    def segment_ids(self) -> npt.NDArray[np.int32]:
        """Segment of each packed token: int32 of shape `(total,)`. The id of all padding is `num_segments`."""
        runs = list(self._runs)
        return np.repeat(np.array([owner for _, owner in runs], dtype=np.int32), [length for length, _ in runs])

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
        host = positions_on_host(positions)
        if host is None:
            return widened(positions) + self.offsets[index]
        check_inside(host, self.encoded_lens[index], f"segment {index}, whose encoded_len is")
        return in_kind(positions, host + self.offsets[index])

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
        host = positions_on_host(packed_positions)
        if host is None:
            host = as_integers(packed_positions)
        # Before the first segment lies one that nothing fits into, so that a position of -1 finds it.
        starts = np.array([-1, *self.offsets], dtype=np.int64)
        lengths = np.array([0, *self.encoded_lens], dtype=np.int64)
        found = np.maximum(np.searchsorted(starts, host, side="right") - 1, 0)
        positions = host - starts[found]
        outside = host[(positions < 0) | (positions >= lengths[found])]
        if outside.size:
            raise PackingError(
                f"position {outside.flat[0]} is outside the pack's {self.num_segments} segments, which without padding "
                f"hold {self.tokens} tokens."
            )
        segments = found - 1
        return in_kind(packed_positions, segments), in_kind(packed_positions, positions)

    def concat(self, arrays: Sequence[Array], *, axis: int = 0, pad_value: float | None = None) -> Array:
        """Joins one array per segment along one axis. One copy; gradients flow through it.

        Works for numpy arrays and for the arrays of any framework whose module offers `concatenate` and
        `full` (torch and JAX do). Nothing is imported: the framework is found among the loaded modules.

        Args:
            arrays: One array per segment, all of one framework and dtype, `encoded_len` long along `axis`.
            axis: The axis of the tokens; negative ones count from the last: -1 for `(1, L)` or mrope's `(3, L)`.
            pad_value: What the padding holds; required if the layout is padded.

        Returns:
            The packed array, `total` long along `axis`.

        Raises:
            PackingError: The number of arrays or a length does not match the layout, the pack is empty (there
                is no array to take the framework from), or the padding has no value that the dtype can hold.

        >>> layout = PackLayout.from_lengths([2, 1], pad_to_multiple_of=4)
        >>> layout.concat([np.array([[7, 8]]), np.array([[9]])], axis=-1, pad_value=0)
        array([[7, 8, 9, 0]])
        """
        if len(arrays) != self.num_segments:
            raise PackingError(f"got {len(arrays)} arrays for {self.num_segments} segments; give one for each.")
        if not arrays:
            raise PackingError("an empty pack has nothing to concatenate; build its dummy input instead.")
        along = [self._check_array(*numbered, axis) for numbered in enumerate(arrays)]
        framework = framework_of(arrays[0])
        own = np.diff(self._starts) - np.array(self.encoded_lens)
        own[-1] += self.padding
        if own.any():
            if pad_value is None:
                raise PackingError(f"the layout has {own.sum()} tokens of padding; give pad_value.")
            check_pad_value(pad_value, arrays[0])
        parts: list[Any] = []
        for array, padding, at in zip(arrays, own.tolist(), along, strict=True):
            parts.append(array)
            if padding:
                parts.append(padding_like(framework, array, padding, pad_value or 0, at))
        joined: Array = framework.concatenate(parts, axis=along[0])
        return joined

    def split(self, packed: Any, *, axis: int = 0) -> list[Any]:
        """Cuts a packed array into one slice per segment and leaves the padding out: undoes `concat`.

        Slices of numpy arrays and tensors are views. O(n).

        Args:
            packed: Anything that slices and is `total` long along `axis`: hidden states, logits, a list, ...
            axis: The axis of the tokens; other than 0 for arrays alone.

        Raises:
            PackingError: The length is not `total`.
        """
        length = len(packed) if axis == 0 else packed.shape[axis]
        if length != self.total:
            raise PackingError(
                f"got {length} packed positions, but the layout has {self.total} "
                f"({self.num_segments} segments, {self.total - self.tokens} tokens of padding)."
            )
        slices = [slice(start, start + n) for start, n in zip(self.offsets, self.encoded_lens, strict=True)]
        if axis == 0:
            return [packed[part] for part in slices]
        before = (slice(None),) * (axis if axis > 0 else len(packed.shape) + axis)
        return [packed[(*before, part)] for part in slices]

    def _check_array(self, index: int, array: Any, axis: int) -> int:
        """Raises `PackingError` unless the array fits its segment; returns `axis` counted from the first."""
        if isinstance(array, list | tuple):
            raise PackingError(f"array {index} is a {type(array).__name__}; give arrays of numpy, torch or JAX.")
        shape, length = tuple(getattr(array, "shape", ())), self.encoded_lens[index]
        at = axis + len(shape) if axis < 0 else axis
        if not 0 <= at < len(shape) or shape[at] != length:
            raise PackingError(
                f"array {index} has shape {shape}, but segment {index} has encoded_len {length}; "
                + ("the first dimension" if axis == 0 else f"dimension {axis}")
                + f" must be {length}."
            )
        return at

    @functools.cached_property
    def _starts(self) -> tuple[int, ...]:
        """Where each segment starts, and where the last one's own padding ends."""
        multiple = self.segment_multiple
        return tuple(itertools.accumulate((n + -n % multiple for n in self.encoded_lens), initial=0))

    @property
    def _runs(self) -> Iterator[tuple[int, int]]:
        """Length and owner of each run of tokens; padding belongs to `num_segments`."""
        for segment, length in enumerate(self.encoded_lens):
            yield length, segment
            yield -length % self.segment_multiple, self.num_segments
        yield self.padding, self.num_segments

    def _summed(self, spans: Sequence[int]) -> npt.NDArray[np.int32]:
        if self.total > _MOST_TOKENS:
            raise PackingError(
                f"the pack has {self.total} tokens, {self.total - _MOST_TOKENS} more than the {_MOST_TOKENS} that "
                "cu_seqlens can hold: varlen kernels take int32. Use a smaller packing_length."
            )
        return np.cumsum([0, *(spans if self.padding else spans[:-1])], dtype=np.int32)
