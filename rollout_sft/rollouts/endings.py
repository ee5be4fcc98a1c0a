"""Ends rollouts that can add nothing to training: a rule on the tokens of one response alone.

    closed     the target builder says that nothing which may follow can change the target or complete the answer
    looping    closed, or the response repeats itself: its last tokens have a period, and in them nothing was completed
               that the target keeps

The rule is one pure function, [`Endings.ends_at`]: seed, batch, engine and moment play no part in it. Engines stop
early where they can, with a [`Watch`] for each response; what they generated too much is cut off at the same token. The
response then counts as a truncated one.

Price: for each token one call of the builder's reader, and with `looping` about 0.2 microseconds more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rollout_sft.reporting.metrics import Counters
from rollout_sft.rollouts.base import Rollout

REPETITIONS = 4
"""How often a response must have repeated itself. Good answers do so up to three times within an object: `0, 0, 0`."""

LONGEST_PERIOD = 128
"""The most tokens that are repeated: two to four malformed objects, or one where every character is a token."""

SHORTEST_LOOP = 128
"""
The fewest tokens that the repetitions have together.

Short periods repeat in good answers: `10000` where each digit is a token, `0.3333333333333333`, `ha ha ha ha`. A number
has at most 17 digits that mean something, so what repeats for 128 tokens within one object is a description alone.
"""

CHECK_EVERY = 16
"""How many tokens an engine in this process generates between two looks at a response: 15 too much at most."""


class ResponseReader(Protocol):
    """
    Reads one response, token by token; a target builder makes it (`response_reader`).

    Attributes:
        kept (`int`):
            Tokens read so far that a target would contain if the response ended here. A target may depend on these
            tokens alone.
        over (`bool`):
            No continuation changes the target, and none makes the answer complete. Never true for a complete answer.
    """

    kept: int
    over: bool

    def read(self, token_id: int) -> None:
        """Reads the next token."""
        ...


@runtime_checkable
class ReadingBuilder(Protocol):
    """Is a target builder that can tell what it would keep of a response; `end_rollouts` needs one."""

    def response_reader(self) -> ResponseReader:
        """Returns a new reader for one response."""
        ...


class Endings:
    """
    Holds the rule: where a response ends early.

    Args:
        builder (`ReadingBuilder`):
            Reads responses.
        looping (`bool`):
            Whether a response that repeats itself ends, too.
    """

    def __init__(self, builder: ReadingBuilder, *, looping: bool):
        self._builder = builder
        self._looping = looping

    def ends_at(self, response_ids: Sequence[int]) -> int | None:
        """
        Returns how many leading tokens of a response are kept; None where it may go on.

        Any longer response with the same beginning gets the same number. O(len(response_ids)).

        Args:
            response_ids (`Sequence[int]`):
                Tokens as generated, without the end token.
        """
        return self.watch()(response_ids)

    def watch(self) -> Watch:
        """Returns what follows one response while it is generated."""
        return Watch(self._builder.response_reader(), _Loops() if self._looping else None)

    def cut(self, rollout: Rollout) -> Rollout:
        """Returns the rollout as the rule leaves it: unchanged, or cut and `truncated`."""
        end = self.ends_at(rollout.response_ids)
        return rollout if end is None else ended(rollout, end)


class Watch:
    """
    Follows one response while it grows: called with ever more of its tokens, it reads each one once.

    Args:
        reader (`ResponseReader`):
            The target builder's.
        loops (`_Loops`, *optional*):
            Finds repetitions; None to end closed answers alone.
    """

    def __init__(self, reader: ResponseReader, loops: _Loops | None):
        self._reader = reader
        self._loops = loops
        self._read = 0
        self._end: int | None = None

    def __call__(self, response_ids: Sequence[int]) -> int | None:
        """
        Returns what [`Endings.ends_at`] does. O(new tokens).

        Args:
            response_ids (`Sequence[int]`):
                All tokens of the response so far, without an end token.
        """
        if self._end is None and len(response_ids) > self._read:
            self._end = self._look(response_ids[self._read :])
        return self._end

    def _look(self, new: Sequence[int]) -> int | None:
        """Reads on; returns the first length at which the response ends."""
        kept: list[int] = []
        start, over = self._read, False
        for token in new:
            self._reader.read(token)
            kept.append(self._reader.kept)
            if over := self._reader.over:
                break
        self._read += len(kept)
        looping = self._loops.find(new[: len(kept)], start, kept) if self._loops else None
        if looping is not None:
            return looping
        return self._read if over else None


class _Loops:
    """Finds repetitions in a response that is given piece by piece. O(LONGEST_PERIOD) for each token, in numpy."""

    def __init__(self) -> None:
        # No token has a negative id: what would lie before the response repeats nothing.
        self._tail: NDArray[np.int64] = np.full(LONGEST_PERIOD, -1)
        self._unequal: NDArray[np.int64] = np.full(LONGEST_PERIOD, -1)
        """For each period the last position whose token differs from that one period earlier."""

    def find(self, new: Sequence[int], start: int, kept: Sequence[int]) -> int | None:
        """
        Returns the length of the response with which its last tokens are a loop.

        Args:
            new (`Sequence[int]`):
                The tokens from position `start` on; not empty.
            start (`int`):
                Tokens that were given before.
            kept (`Sequence[int]`):
                After each new token the number of tokens that the target would contain.
        """
        tokens = np.concatenate([self._tail, np.asarray(new, dtype=np.int64)])
        positions = np.arange(len(new))[:, None]
        earlier = tokens[LONGEST_PERIOD + positions - _PERIODS]
        unequal = np.where(earlier != tokens[LONGEST_PERIOD:, None], start + positions, self._unequal)
        unequal = np.maximum.accumulate(unequal, axis=0)
        self._tail, self._unequal = tokens[-LONGEST_PERIOD:], unequal[-1]
        lengths = start + 1 + positions
        # The loop begins one period before the first token that repeats one.
        looping = (lengths - 1 - unequal + _PERIODS >= _LOOPS) & (np.asarray(kept)[:, None] <= lengths - _LOOPS)
        found = looping.any(axis=1)
        return start + 1 + int(found.argmax()) if found.any() else None


_PERIODS: NDArray[np.int64] = np.arange(1, LONGEST_PERIOD + 1)
_LOOPS: NDArray[np.int64] = np.maximum(REPETITIONS * _PERIODS, SHORTEST_LOOP)
"""The tokens that the repetitions of each period have together, at the least."""


def make_endings(how: str, builder: object) -> Endings | None:
    """
    Returns the rule that `rollout_matching.end_rollouts` names; None for `never`.

    Raises:
        `ValueError`: the target builder cannot read responses.
    """
    if how == "never":
        return None
    if not isinstance(builder, ReadingBuilder):
        raise ValueError(
            f"rollout_matching.end_rollouts is {how}, but the target builder {type(builder).__name__} has no "
            "response_reader(), which says what a response adds to training. Add it "
            "(docs/howto/end_rollouts.md), or set end_rollouts: never."
        )
    return Endings(builder, looping=how == "looping")


def ended(rollout: Rollout, end: int) -> Rollout:
    """Returns the rollout with `end` tokens, as one that ended early."""
    return replace(rollout, response_ids=rollout.response_ids[:end], truncated=True, ended=True)


def ended_counters(rollouts: Sequence[Rollout], max_new_tokens: int) -> Counters:
    """
    Returns how many rollouts ended early, and what that saved, for the log line.

    Args:
        rollouts (`Sequence[Rollout]`):
            Rollouts after the cut.
        max_new_tokens (`int`):
            The most tokens of a response. What an ended one is shorter counts as saved, at most so much was.
    """
    lengths = [len(rollout.response_ids) for rollout in rollouts if rollout.ended]
    return {
        "rollout/ended_early": (float(len(lengths)), float(len(rollouts))),
        "rollout/tokens_saved": (float(sum(max_new_tokens - n for n in lengths)), float(len(rollouts))),
    }
