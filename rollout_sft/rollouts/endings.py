"""Ends rollouts that can add nothing to training: a rule on the tokens of one response alone.

    closed     the target builder says that nothing which may follow can change the target or complete the answer
    looping    closed, or the response repeats itself: its last tokens have a period, and in them nothing was completed
               that the target keeps

The rule is one pure function, [`Endings.ends_at`]: seed, batch, engine and moment play no part in it. Engines stop
early where they can, with a [`Watch`] for each response; what they generated too much is cut off at the same token. The
response then counts as a truncated one.

Price: 2 to 11 microseconds for each token, most of it the builder's reader; the same for every length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
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
        for begin in range(0, len(new), _BLOCK):
            end = self._look_at_block(new[begin : begin + _BLOCK])
            if end is not None:
                return end
        return None

    def _look_at_block(self, new: Sequence[int]) -> int | None:
        start, kept, steady = self._read, self._reader.kept, len(new)
        for token in new:
            self._reader.read(token)
            self._read += 1
            if self._reader.kept != kept:
                steady = min(steady, self._read - start - 1)
            if self._reader.over:
                break
        looping = self._loops.find(new[: self._read - start], start, kept, steady) if self._loops else None
        if looping is not None:
            return looping
        return self._read if self._reader.over else None


class _Loops:
    """Finds repetitions in a response that is given block by block; numpy compares a block with all periods at once."""

    def __init__(self) -> None:
        # No token has a negative id: what would lie before the response repeats nothing.
        self._tail: NDArray[np.int64] = np.full(LONGEST_PERIOD, -1)
        self._unequal: NDArray[np.int64] = np.full(LONGEST_PERIOD, -1)
        """For each period the last position whose token differs from that one period earlier."""

    def find(self, new: Sequence[int], start: int, kept: int, steady: int) -> int | None:
        """
        Returns the length of the response with which its last tokens are a loop.

        Args:
            new (`Sequence[int]`):
                The tokens from position `start` on; at least one, at most [`_BLOCK`]. So a loop that is found in them
                began before them, and nothing in it was completed in them.
            start (`int`):
                Tokens that were given before.
            kept (`int`):
                How many of these a target would contain.
            steady (`int`):
                How many of the new tokens leave that number as it is.
        """
        tokens = np.concatenate([self._tail, np.asarray(new, dtype=np.int64)])
        unequal = sliding_window_view(tokens[:-1], len(new)) != tokens[LONGEST_PERIOD:]
        broken = unequal.any(axis=1)
        repeating = np.where(broken, unequal.argmax(axis=1), len(new))
        # The loop begins one period before the first token that repeats one, and behind what is kept.
        lengths = np.maximum(self._unequal + 1 - _PERIODS, kept) + _LOOPS
        found = lengths <= start + np.minimum(repeating, steady)
        last = start + len(new) - 1 - unequal[:, ::-1].argmax(axis=1)
        self._tail, self._unequal = tokens[-LONGEST_PERIOD:], np.where(broken, last, self._unequal)
        return int(lengths[found].min()) if found.any() else None


_BLOCK = 64
"""Tokens that are compared at once: fewer than any loop has behind its first period."""

_PERIODS: NDArray[np.int64] = np.arange(LONGEST_PERIOD, 0, -1)
_LOOPS: NDArray[np.int64] = np.maximum(REPETITIONS * _PERIODS, SHORTEST_LOOP)
"""The tokens that the repetitions of each period have together, at the least."""

assert (_LOOPS - _PERIODS).min() > _BLOCK


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
