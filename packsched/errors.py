"""Defines the errors with which calls are refused. Every message states the numbers first and then what to do.

All are raised before anything is changed, so the caller may correct the input and call again. Each kind carries its
numbers as attributes and keeps them when it is pickled, so it may be sent to another process.
"""

from __future__ import annotations

import copyreg
from typing import Any, Self

_MORE_ROOM = "use more micro_steps, fewer or shorter segments, or a larger packing_length"


class PackingError(ValueError):
    """Refuses a bad argument, or a request that cannot be met. The kinds below say which.

    Attributes:
        index: The segment that the message names, 0 the oldest; None where it names none.
        rank: The rank that the segment belongs to, in `plan_ranks`; None elsewhere.

    >>> from packsched import PackLayout
    >>> try:
    ...     PackLayout.from_lengths([3, 0])
    ... except PackingError as error:
    ...     print(error.index)
    1
    """

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index
        self.rank: int | None = None

    def with_message(self, message: str) -> Self:
        """Returns the same kind of error with the same numbers and another text. O(1).

        For a library that catches the error where it leaves packsched and adds advice in its own terms.

        >>> error = OversizedSegmentError(index=3, encoded_len=5000, packing_length=4096)
        >>> retold = error.with_message("the sample is too long")
        >>> print(retold, retold.encoded_len)
        the sample is too long 5000
        """
        copy = type(self).__new__(type(self), message)
        copy.__dict__.update(self.__dict__)
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with the text alone, but the kinds are made from their numbers.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class OversizedSegmentError(PackingError):
    """Refuses a segment that is longer than `packing_length`; segments are never split or truncated.

    Attributes:
        index: The segment, counted from 0 in insertion order.
        encoded_len: Its length in tokens.
        packing_length: The cap in tokens that it exceeds.
        saved_packing_length: The cap that the state of a `CarryBuffer` was saved with; None elsewhere.

    >>> print(OversizedSegmentError(index=3, encoded_len=5000, packing_length=4096))
    segment 3 has encoded_len 5000, which is 904 more than packing_length 4096. \
Raise packing_length or make shorter segments; they are never split.
    """

    def __init__(
        self, *, index: int, encoded_len: int, packing_length: int, saved_packing_length: int | None = None
    ) -> None:
        excess = encoded_len - packing_length
        if saved_packing_length is None:
            message = (
                f"segment {index} has encoded_len {encoded_len}, which is {excess} more than packing_length "
                f"{packing_length}. Raise packing_length or make shorter segments; they are never split."
            )
        else:
            message = (
                f"the state was saved with packing_length {saved_packing_length}, and its segment {index} has "
                f"encoded_len {encoded_len}, which is {excess} more than packing_length {packing_length} now. "
                "Raise packing_length back, or resume from a checkpoint whose buffer is empty."
            )
        super().__init__(message, index=index)
        self.encoded_len = encoded_len
        self.packing_length = packing_length
        self.saved_packing_length = saved_packing_length


class BufferOverflowError(PackingError):
    """Refuses more segments than a carry buffer may hold.

    Attributes:
        segments: Segments that wait already, or that the saved state holds.
        packing_buffer: Most segments that may wait.
        encoded_len: Length in tokens of the refused segment; None for a saved state.

    >>> print(BufferOverflowError(segments=3, packing_buffer=2))
    the state holds 3 segments and packing_buffer is 2. Raise packing_buffer to at least 3.
    """

    def __init__(self, *, segments: int, packing_buffer: int, encoded_len: int | None = None) -> None:
        if encoded_len is None:
            message = (
                f"the state holds {segments} segments and packing_buffer is {packing_buffer}. "
                f"Raise packing_buffer to at least {segments}."
            )
        else:
            message = (
                f"{segments} segments wait and packing_buffer is {packing_buffer}, so a segment with encoded_len "
                f"{encoded_len} was refused. Raise packing_buffer, add fewer segments for each pack that is popped, "
                "or raise packing_length so that a pack takes more of them."
            )
        super().__init__(message)
        self.segments = segments
        self.packing_buffer = packing_buffer
        self.encoded_len = encoded_len


class InfeasibleWindowError(PackingError):
    """Proves that no plan puts every segment of the window into its packs.

    Attributes:
        segments: Segments of the window.
        tokens: Tokens of them all.
        packing_length: The cap of a pack in tokens.
        micro_steps: Packs that the window has.
        bound: Packs that it needs at the very least.
        proof: What proves the bound.

    >>> from packsched import plan_window
    >>> try:
    ...     plan_window([6, 6, 6], 10, 2)
    ... except InfeasibleWindowError as error:
    ...     print(f"{error.micro_steps} packs are given, at least {error.bound} are needed")
    2 packs are given, at least 3 are needed
    """

    def __init__(
        self, *, segments: int, tokens: int, packing_length: int, micro_steps: int, bound: int, proof: str
    ) -> None:
        super().__init__(
            f"{segments} segments of {tokens} tokens in all need at least {bound} packs of packing_length "
            f"{packing_length} (proof: {proof}), and the window has {micro_steps} micro-steps, "
            f"{micro_steps * packing_length} tokens. To fix: {_MORE_ROOM}."
        )
        self.segments = segments
        self.tokens = tokens
        self.packing_length = packing_length
        self.micro_steps = micro_steps
        self.bound = bound
        self.proof = proof


class UndecidedWindowError(PackingError):
    """Says that the search gave up: it found neither a plan nor a proof that there is none.

    Attributes:
        segments: Segments of the window.
        tokens: Tokens of them all.
        packing_length: The cap of a pack in tokens.
        micro_steps: Packs that the window has.
        bound: Packs that it needs at the very least, as far as proven.
        searched: Whether a search ran; then a larger `effort` searches longer.
    """

    def __init__(
        self, *, segments: int, tokens: int, packing_length: int, micro_steps: int, bound: int, searched: bool
    ) -> None:
        longer = "A larger effort= searches longer" if searched else "Windows this large are not searched"
        super().__init__(
            f"no plan found that puts {segments} segments of {tokens} tokens into {micro_steps} packs of "
            f"packing_length {packing_length} ({micro_steps * packing_length} tokens), and no proof that there is "
            f"none: at least {bound} packs are needed. {longer}; one more pack or some free tokens would settle it: "
            f"{_MORE_ROOM}."
        )
        self.segments = segments
        self.tokens = tokens
        self.packing_length = packing_length
        self.micro_steps = micro_steps
        self.bound = bound
        self.searched = searched


class MissingBinpackingError(ImportError):
    """Refuses policy `binpacking` where the module is absent or of a version that decides differently.

    There is no silent fallback to another policy: it would change which segments are trained together.

    Attributes:
        installed: The version that is installed; None if it is unknown or the module is absent.
    """

    def __init__(self, message: str, *, installed: str | None = None) -> None:
        super().__init__(message, name="binpacking")
        self.installed = installed
