"""Holds segments that wait to be packed, and turns them into packs.

- `CarryBuffer` (scope `micro`): pop one pack per micro-step; the other segments wait for the next one. The oldest
  segment is always in the next pack, so none waits for more than `packing_buffer` pops. Checkpoints hold the buffer.
- `WindowBuffer` (scope `window`): fill it with a whole window, then take exactly `micro_steps` packs at once.
  Nothing is left over, so checkpoints need not hold it. A window has to fit as a whole.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, SupportsIndex, TypeVar

from packsched.arguments import checked_count, checked_encoded_len, checked_lengths
from packsched.costs import DEFAULT_COST
from packsched.errors import BufferOverflowError, OversizedSegmentError, PackingError
from packsched.layout import PackLayout
from packsched.selection import Policy, check_policy, require_binpacking, select
from packsched.window import Objective, WindowPlan, plan_window

__all__ = ["CarryBuffer", "Pack", "WindowBuffer"]

logger = logging.getLogger(__name__)

S = TypeVar("S")


@dataclass(frozen=True, eq=False, repr=False)
class Pack(Generic[S]):
    """Holds the segments that share one forward pass; empty for a micro-step that trains nothing.

    A pack has a length and iterates over its segments.

    Attributes:
        segments: The segments, as they were added, in packed order (insertion order).
        indices: Their places, ascending, 0 the oldest: in a `CarryBuffer` when the pack was popped, or in the whole
            window of a `WindowBuffer`.
        layout: Where each segment lies in the pack, without padding.
        packing_length: The cap in tokens that the pack was made for.

    >>> window = WindowBuffer(9, micro_steps=1)
    >>> window.add("a", 6)
    >>> window.add("b", 3)
    >>> [pack] = window.take_packs()
    >>> pack
    Pack(2 segments, 9 tokens, packing_length=9)
    >>> len(pack), list(pack), pack.fill
    (2, ['a', 'b'], 1.0)
    """

    segments: tuple[S, ...]
    indices: tuple[int, ...]
    layout: PackLayout
    packing_length: int

    def __len__(self) -> int:
        """Returns the number of segments. O(1)."""
        return len(self.segments)

    def __iter__(self) -> Iterator[S]:
        """Iterates over the segments in packed order."""
        return iter(self.segments)

    def __repr__(self) -> str:
        return f"Pack({len(self)} segments, {self.layout.tokens} tokens, packing_length={self.packing_length})"

    @property
    def fill(self) -> float:
        """Returns the segments' tokens, without padding, over `packing_length`; 0.0 for an empty pack."""
        return self.layout.tokens / self.packing_length

    @classmethod
    def _of(cls, indices: Iterable[int], segments: Sequence[S], lengths: Sequence[int], packing_length: int) -> Pack[S]:
        chosen = tuple(indices)
        layout = PackLayout.from_lengths([lengths[index] for index in chosen])
        assert layout.tokens <= packing_length, (chosen, list(lengths), packing_length)
        return cls(tuple(segments[index] for index in chosen), chosen, layout, packing_length)


class CarryBuffer(Generic[S]):
    """Gives one pack at a time and keeps the other segments for later. It is bounded, and local to one rank.

    Methods to fill and empty it: `add`, `pop_pack`. To look inside: `len`, `segments`, `encoded_lens`. For a
    checkpoint: `state_dict`, `load_state_dict`.

    Args:
        packing_length: The hard cap of a pack, in tokens.
        packing_buffer: The most segments held at a time.
        policy: How `select` chooses the segments that join the oldest one.
        min_fill_ratio: A pack with a lower fill is logged as a warning; 0 logs none.

    Raises:
        PackingError: An argument is out of range.
        MissingBinpackingError: The policy is `binpacking` and the module cannot be used. Raised here, before the
            first rollout.

    >>> buffer = CarryBuffer(9, packing_buffer=8, min_fill_ratio=0.5)
    >>> for name, length in [("a", 4), ("b", 1), ("c", 5)]:
    ...     buffer.add(name, length)
    >>> buffer
    CarryBuffer(3 segments, 10 tokens, packing_length=9, packing_buffer=8, policy='binpacking')
    >>> buffer.pop_pack().segments, buffer.segments
    (('a', 'c'), ('b',))
    """

    def __init__(
        self,
        packing_length: SupportsIndex,
        *,
        packing_buffer: SupportsIndex,
        policy: Policy = "binpacking",
        min_fill_ratio: float = 0.65,
    ) -> None:
        check_policy(policy)
        if not 0 <= min_fill_ratio <= 1:
            raise PackingError(f"min_fill_ratio is {min_fill_ratio}; it is a share of a pack, from 0 to 1.")
        self.packing_length = checked_count("packing_length", packing_length)
        self.packing_buffer = checked_count("packing_buffer", packing_buffer)
        self.policy = policy
        self.min_fill_ratio = min_fill_ratio
        if policy == "binpacking":
            require_binpacking()
        self._segments: list[S] = []
        self._encoded_lens: list[int] = []

    def __len__(self) -> int:
        """Returns the number of waiting segments. O(1)."""
        return len(self._segments)

    def __repr__(self) -> str:
        return (
            f"CarryBuffer({len(self)} segments, {sum(self._encoded_lens)} tokens, "
            f"packing_length={self.packing_length}, packing_buffer={self.packing_buffer}, policy={self.policy!r})"
        )

    @property
    def segments(self) -> tuple[S, ...]:
        """Returns the waiting segments, the oldest first. O(n)."""
        return tuple(self._segments)

    @property
    def encoded_lens(self) -> tuple[int, ...]:
        """Returns the lengths in tokens of the waiting segments, the oldest first. O(n)."""
        return tuple(self._encoded_lens)

    def add(self, segment: S, encoded_len: SupportsIndex) -> None:
        """Puts a segment behind the others. O(1). A refused segment leaves the buffer as it was.

        Args:
            segment: Anything; it comes back in a `Pack` as it is.
            encoded_len: Its length in tokens.

        Raises:
            OversizedSegmentError: It would never fit into a pack.
            BufferOverflowError: `packing_buffer` segments wait already.
            PackingError: The length is not a positive integer.
        """
        length = _fitting(encoded_len, len(self), self.packing_length)
        if len(self) >= self.packing_buffer:
            raise BufferOverflowError(segments=len(self), packing_buffer=self.packing_buffer, encoded_len=length)
        self._segments.append(segment)
        self._encoded_lens.append(length)

    def pop_pack(self) -> Pack[S]:
        """Takes the next pack out: the oldest segment and those that the policy adds to it.

        A pack below `min_fill_ratio` is still popped, and logger `packsched.buffers` logs a warning. Costs one
        `select`, then O(n).

        Raises:
            PackingError: The buffer is empty; run a micro-step without segments instead.
        """
        if not self._segments:
            raise PackingError(
                "0 segments wait, so no pack can be popped. Ask len(buffer) first; run an empty micro-step."
            )
        indices = select(self._encoded_lens, self.packing_length, policy=self.policy)
        pack = Pack._of(indices, self._segments, self._encoded_lens, self.packing_length)
        taken = set(indices)
        self._segments = [s for index, s in enumerate(self._segments) if index not in taken]
        self._encoded_lens = [n for index, n in enumerate(self._encoded_lens) if index not in taken]
        if pack.fill < self.min_fill_ratio:
            logger.warning(
                "post-rollout packing underfilled: %d of %d tokens (fill %.3f < min_fill_ratio %.3f) in %d "
                "segments, %d left in the buffer. Make more segments per micro-step or pack over the window.",
                pack.layout.tokens,
                self.packing_length,
                pack.fill,
                self.min_fill_ratio,
                len(indices),
                len(self),
            )
        return pack

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint needs: the waiting segments, their lengths and the cap. O(n)."""
        return {
            "packing_length": self.packing_length,
            "encoded_lens": list(self._encoded_lens),
            "segments": list(self._segments),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces the waiting segments by those of `state_dict`. O(n). A refused state changes nothing.

        `packing_length` and `packing_buffer` may have changed since, as long as every segment still fits.

        Raises:
            OversizedSegmentError: A saved segment is longer than this buffer's `packing_length`.
            BufferOverflowError: More segments were saved than this buffer may hold.
            PackingError: The state is not one of `state_dict`.
        """
        expected = {"packing_length", "encoded_lens", "segments"}
        if set(state) != expected:
            raise PackingError(
                f"the state has the keys {sorted(state)} instead of {sorted(expected)}; "
                "pass what CarryBuffer.state_dict returned."
            )
        saved_packing_length = checked_count("the state's packing_length", state["packing_length"])
        lengths = checked_lengths(state["encoded_lens"])
        if not isinstance(state["segments"], Iterable):
            raise PackingError(f"the state's segments are {state['segments']!r}; CarryBuffer.state_dict gives a list.")
        segments = list(state["segments"])
        if len(segments) != len(lengths):
            raise PackingError(f"the state has {len(segments)} segments but {len(lengths)} encoded_lens.")
        for index, length in enumerate(lengths):
            if length > self.packing_length:
                raise OversizedSegmentError(
                    index=index,
                    encoded_len=length,
                    packing_length=self.packing_length,
                    saved_packing_length=saved_packing_length,
                )
        if len(segments) > self.packing_buffer:
            raise BufferOverflowError(segments=len(segments), packing_buffer=self.packing_buffer)
        self._segments = segments
        self._encoded_lens = lengths

    def _check(self) -> None:
        """Asserts every invariant of the buffer. For tests."""
        state = (self._encoded_lens, self.packing_length, self.packing_buffer)
        assert len(self._segments) == len(self._encoded_lens) <= self.packing_buffer, state
        assert all(type(n) is int and 0 < n <= self.packing_length for n in self._encoded_lens), state


class WindowBuffer(Generic[S]):
    """Collects the segments of one accumulation window, then gives exactly `micro_steps` packs.

    Methods to fill and empty it: `add`, `take_packs`. To look inside: `len`, `segments`, `encoded_lens`, and
    `plan` afterwards. The last window of an epoch may have fewer micro-steps, so make one buffer per window; a buffer
    costs nothing.

    Args:
        packing_length: The hard cap of a pack, in tokens.
        micro_steps: Packs per window: forward/backward passes per optimizer step on this rank.
        objective: The objective of `plan_window`: `"dense"`, `"balanced"` or `"cost"`.
        effort: Multiplies the counted work of `plan_window`.

    Attributes:
        plan: The plan of the last packs taken, with its bounds; None before.

    Raises:
        PackingError: An argument is out of range.

    >>> window = WindowBuffer(9, micro_steps=3)
    >>> for name, length in [("a", 6), ("b", 5), ("c", 3)]:
    ...     window.add(name, length)
    >>> window
    WindowBuffer(3 segments, 14 tokens, packing_length=9, micro_steps=3)
    >>> [pack.segments for pack in window.take_packs()]
    [('a', 'c'), ('b',), ()]
    >>> len(window), window.plan.lower_bound
    (0, 2)
    """

    def __init__(
        self,
        packing_length: SupportsIndex,
        micro_steps: SupportsIndex,
        *,
        objective: Objective = "dense",
        effort: float = 1.0,
    ) -> None:
        self.packing_length = checked_count("packing_length", packing_length)
        self.micro_steps = checked_count("micro_steps", micro_steps)
        self.objective = objective
        self.effort = effort
        self.plan: WindowPlan | None = None
        # The planner checks objective and effort; this call refuses a bad one before the first rollout.
        plan_window([], self.packing_length, self.micro_steps, objective=objective, effort=effort)
        self._segments: list[S] = []
        self._encoded_lens: list[int] = []
        self._costs: list[int] = []

    def __len__(self) -> int:
        """Returns the number of segments collected so far. O(1)."""
        return len(self._segments)

    def __repr__(self) -> str:
        return (
            f"WindowBuffer({len(self)} segments, {sum(self._encoded_lens)} tokens, "
            f"packing_length={self.packing_length}, micro_steps={self.micro_steps})"
        )

    @property
    def segments(self) -> tuple[S, ...]:
        """Returns the collected segments, in insertion order. O(n)."""
        return tuple(self._segments)

    @property
    def encoded_lens(self) -> tuple[int, ...]:
        """Returns the lengths in tokens of the collected segments, in insertion order. O(n)."""
        return tuple(self._encoded_lens)

    def add(self, segment: S, encoded_len: SupportsIndex, *, cost: SupportsIndex | None = None) -> None:
        """Adds a segment to the window. O(1). A refused segment leaves the window as it was.

        Args:
            segment: Anything; it comes back in a `Pack` as it is.
            encoded_len: Its length in tokens.
            cost: For objective `cost`: what it costs, as a positive integer; see `plan_window` for the default.

        Raises:
            OversizedSegmentError: It would not fit into any pack.
            PackingError: The length or the cost is not a positive integer.
        """
        length = _fitting(encoded_len, len(self), self.packing_length)
        checked = DEFAULT_COST(length) if cost is None else checked_count(f"the cost of segment {len(self)}", cost)
        self._segments.append(segment)
        self._encoded_lens.append(length)
        self._costs.append(checked)

    def take_packs(self) -> list[Pack[S]]:
        """Returns the packs of the window and empties the buffer. If planning fails, the buffer does not change.

        Returns:
            Exactly `micro_steps` packs with every segment in exactly one of them, empty packs last.

        Raises:
            InfeasibleWindowError: No plan exists; the window is still in the buffer.
            UndecidedWindowError: Neither a plan nor a proof was found; the window is still in the buffer, and a
                larger `effort` may settle it.
        """
        plan = plan_window(
            self._encoded_lens,
            self.packing_length,
            self.micro_steps,
            objective=self.objective,
            cost=self._costs if self.objective == "cost" else None,
            effort=self.effort,
        )
        packs = [Pack._of(indices, self._segments, self._encoded_lens, self.packing_length) for indices in plan.packs]
        taken = sorted(index for pack in packs for index in pack.indices)
        assert len(packs) == self.micro_steps, (plan, self._encoded_lens)
        assert taken == list(range(len(self))), (plan, self._encoded_lens)
        self.plan = plan
        self._segments = []
        self._encoded_lens = []
        self._costs = []
        return packs

    def _check(self) -> None:
        """Asserts every invariant of the buffer. For tests."""
        state = (self._encoded_lens, self.packing_length, self.micro_steps)
        assert len(self._segments) == len(self._encoded_lens) == len(self._costs), state
        assert all(type(n) is int and 0 < n <= self.packing_length for n in self._encoded_lens), state


def _fitting(encoded_len: SupportsIndex, index: int, packing_length: int) -> int:
    length = checked_encoded_len(encoded_len, index)
    if length > packing_length:
        raise OversizedSegmentError(index=index, encoded_len=length, packing_length=packing_length)
    return length
