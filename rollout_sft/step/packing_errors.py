"""Adds the sample's id and the YAML keys to change to the errors of packsched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from packsched import (
    BufferOverflowError,
    InfeasibleWindowError,
    MissingBinpackingError,
    OversizedSegmentError,
    PackingError,
    UndecidedWindowError,
)

_MORE_ROOM = (
    "raise gradient_accumulation_steps, lower per_device_train_batch_size, raise global_max_length, lower "
    "max_new_tokens, or set on_infeasible: extra_steps"
)
_ADVICE: dict[type[PackingError], str] = {
    OversizedSegmentError: (
        "raise global_max_length (or template.max_length), lower max_new_tokens, leave such samples out with "
        "on_oversized: skip, or disable training.packing"
    ),
    BufferOverflowError: (
        "raise training.packing_buffer, lower per_device_train_batch_size, or raise global_max_length"
    ),
    InfeasibleWindowError: _MORE_ROOM,
    UndecidedWindowError: _MORE_ROOM,
}


@contextmanager
def in_yaml_terms(sample_id: str = "", *, ranks: int = 1) -> Iterator[None]:
    """
    Adds the sample's id and the YAML keys to an error of packsched; keeps its type and its numbers.

    Args:
        sample_id (`str`, *optional*):
            The sample that the block handles, if there is one.
        ranks (`int`, *optional*, defaults to 1):
            How many ranks' windows the block plans together.
    """
    try:
        yield
    except MissingBinpackingError as error:
        raise MissingBinpackingError(
            f"{error} In the YAML file: choose another pack_policy or disable training.packing.",
            installed=error.installed,
        ) from None
    except PackingError as error:
        sample = f"sample {sample_id!r}: " if sample_id else ""
        advice = f" In the YAML file: {_ADVICE[type(error)]}." if type(error) in _ADVICE else ""
        raise error.with_message(f"{sample}{error}{_of_ranks(error, ranks)}{advice}") from None


def _of_ranks(error: PackingError, ranks: int) -> str:
    """Says, in scope `global`, that the numbers are those of all ranks, and how many micro-steps each would need."""
    if ranks == 1 or not isinstance(error, (InfeasibleWindowError, UndecidedWindowError)):
        return ""
    given = error.micro_steps // ranks
    text = f" In scope global this is the window of all {ranks} ranks, with {_count(given, 'micro-step')} each"
    missing = error.bound - error.micro_steps
    if missing <= 0:
        return f"{text}."
    needed = _count(-(-error.bound // ranks), "micro-step")
    return f"{text}; at least {_count(missing, 'more pack')} would be needed, so at least {needed} for each rank."


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
