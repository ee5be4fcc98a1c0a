"""One collective in which ranks share what they know and fail together.

A rank that raises alone leaves the others waiting in their next collective until a timeout. Whatever may fail on
one rank therefore runs inside [`together`], and every rank calls it at the same point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

T = TypeVar("T")


class PeerError(RuntimeError):
    """Another rank failed; the message is that rank's."""


def together(work: Callable[[], T], *, share: Callable[[T], Any]) -> tuple[T, list[Any]]:
    """
    Runs `work` on every rank; if any rank fails, all raise.

    Args:
        work (`Callable[[], T]`):
            What may fail.
        share (`Callable[[T], Any]`):
            The part of the result that the other ranks need; it is pickled.

    Returns:
        `tuple[T, list[Any]]`: this rank's result, and what every rank shared, in the order of the ranks.

    Raises:
        `Exception`: on the failing rank its own exception; on the others [`PeerError`] with that rank's message.
    """
    state = PartialState()
    if state.num_processes == 1:
        result = work()
        return result, [share(result)]
    try:
        result = work()
        report = (None, share(result))
    except Exception as error:
        gather_object([(f"{type(error).__name__}: {error}", None)])
        raise
    reports = gather_object([report])
    for rank, (message, _) in enumerate(reports):
        if message is not None:
            raise PeerError(f"rank {rank} failed, so rank {state.process_index} stops too. {message}")
    return result, [shared for _, shared in reports]
