"""The ways a call can be refused. Every message states the numbers first and then what to do about them.

All are raised before anything has been changed, so the caller may correct the input and call again. They
carry nothing but their text, which makes them safe to pickle between processes.
"""

from __future__ import annotations


class PackingError(ValueError):
    """A bad argument, or a request that cannot be met. The kinds below say which."""


class OversizedSegmentError(PackingError):
    """A single segment is longer than `packing_length`; segments are never split or truncated."""

    @classmethod
    def for_segment(cls, index: int, encoded_len: int, packing_length: int) -> OversizedSegmentError:
        """Returns the error for one segment, with every mitigation named.

        Args:
            index: Position of the segment in insertion order.
            encoded_len: Its length in tokens.
            packing_length: The cap in tokens that it exceeds.

        >>> print(OversizedSegmentError.for_segment(3, 5000, 4096))
        segment 3 has encoded_len 5000, which is 904 more than packing_length 4096. \
Raise global_max_length (or template.max_length), lower max_new_tokens, or disable training.packing.
        """
        return cls(
            f"segment {index} has encoded_len {encoded_len}, which is {encoded_len - packing_length} more "
            f"than packing_length {packing_length}. Raise global_max_length (or template.max_length), "
            "lower max_new_tokens, or disable training.packing."
        )


class BufferOverflowError(PackingError):
    """A carry buffer already holds `packing_buffer` segments."""


class InfeasibleWindowError(PackingError):
    """Proof: no assignment puts every segment of the window into that many packs."""


class UndecidedWindowError(PackingError):
    """The search gave up: neither a plan nor a proof that there is none."""


class MissingBinpackingError(ImportError):
    """Policy `binpacking` was asked for, but the module is absent or of a version that decides differently.

    There is no silent fallback to another policy: it would change which segments are trained together.
    """
