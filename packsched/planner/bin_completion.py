"""Searches exactly by bin completion, within a budget of nodes.

Fills one pack at a time, which gets the longest remaining segment. Instead of placing segments one by one, a node
chooses a whole completion of that pack. It considers only completions that waste no more than the remaining slack and
to which no remaining segment can be added. A search of the whole tree proves that there is no plan.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import neg

from packsched.planner.bounds import martello_toth_bound

# Beginning a pack counts no extra node while the remaining segments, times the room in units of 2^14 tokens, are at
# most 256; every four beyond that count as one node.
_FREE_SEGMENTS = 256
_SEGMENTS_PER_NODE = 4


class OutOfNodesError(Exception):
    """Raised when the budget ended before the search did, so that nothing is proven."""


def bin_completion(lengths: Sequence[int], packing_length: int, packs: int, nodes: int) -> list[list[int]] | None:
    """Finds at most `packs` packs of positions in `lengths` (longest first); None proves that there are none.

    Cost: exponential, but at most `nodes` steps of a few microseconds. Beginning a pack costs a bound and
    a bitset of the room for each remaining segment. It counts as more steps when more segments remain, so that a
    large window ends as soon as a small one.

    Raises:
        OutOfNodesError: `nodes` steps gave no answer.

    Source: R. E. Korf, "A new algorithm for optimal bin packing", AAAI 2002; the dominance of completions:
    S. Martello and P. Toth, "Knapsack Problems", Wiley 1990, chapter 8.
    """
    slack = packs * packing_length - sum(lengths)
    if slack < 0:
        return None
    search = _Completion(lengths, packing_length, nodes)
    return search.fill(list(range(len(lengths))), packs, slack)


class _Completion:
    def __init__(self, lengths: Sequence[int], packing_length: int, nodes: int) -> None:
        self.lengths = lengths
        self.packing_length = packing_length
        self.nodes = nodes
        self.failed: set[tuple[int, ...]] = set()

    def fill(self, left: list[int], packs: int, slack: int) -> list[list[int]] | None:
        begun: list[tuple[_Begun, Iterator[list[int]]]] = []
        filled: list[list[int]] = []
        pack: _Begun | None = self.begin(left, packs, slack)
        while left:
            if pack is not None:
                begun.append((pack, self.completions(pack.left[1:], pack.room, pack.slack)))
                filled.append([])
            elif not begun:
                return None
            pack, completions = begun[-1]
            chosen = next(completions, None)
            if chosen is None:
                self.failed.add(pack.state)
                begun.pop()
                filled.pop()
                pack = None
                continue
            filled[-1] = [pack.left[0], *chosen]
            taken = set(chosen)
            left = [position for position in pack.left[1:] if position not in taken]
            waste = pack.room - sum(self.lengths[position] for position in chosen)
            pack = self.begin(left, packs - len(filled), pack.slack - waste)
        return filled

    def begin(self, left: list[int], packs: int, slack: int) -> "_Begun | None":
        """Begins the next pack with the longest remaining segment; None if the rest is known not to fit."""
        state = tuple(self.lengths[position] for position in left)
        if not left or state in self.failed:
            return None
        room = self.packing_length - state[0]
        self.nodes -= max(0, len(left) * ((room >> 14) + 1) - _FREE_SEGMENTS) // _SEGMENTS_PER_NODE
        if self.nodes < 0:
            raise OutOfNodesError
        if martello_toth_bound(state, self.packing_length) > packs:
            self.failed.add(state)
            return None
        return _Begun(left, state, room, slack)

    def completions(self, items: list[int], room: int, slack: int) -> Iterator[list[int]]:
        """Yields the maximal subsets of `items` that leave at most `slack` of `room`, longest segments first."""
        lengths = [self.lengths[position] for position in items]
        # reach[k]: bit s set when some subset of items[k:] sums to s; cuts every branch without a completion.
        fits = (1 << room + 1) - 1
        reach = [1] * (len(items) + 1)
        for k in range(len(items) - 1, -1, -1):
            reach[k] = reach[k + 1] | reach[k + 1] << lengths[k] & fits
        chosen: list[int] = []
        # Each: the next item, the room, the shortest item left out that would have fitted, and the choice before it.
        stack = [(0, room, room + 1, 0, -1)]
        while stack:
            k, room, shortest_skipped, before, taken = stack.pop()
            del chosen[before:]
            if taken >= 0:
                chosen.append(taken)
            self.nodes -= 1
            if self.nodes < 0:
                raise OutOfNodesError
            waste = min(room, slack, shortest_skipped - 1)
            if not reach[k] >> room - waste & ((1 << waste + 1) - 1):
                continue
            k = bisect_left(lengths, -room, lo=k, key=neg)
            if k == len(items):
                yield [items[at] for at in chosen]
                continue
            length = lengths[k]
            after = bisect_right(lengths, -length, lo=k, key=neg)
            stack.append((after, room, min(shortest_skipped, length), len(chosen), -1))
            stack.append((k + 1, room - length, shortest_skipped, len(chosen), k))


@dataclass(frozen=True)
class _Begun:
    left: list[int]
    state: tuple[int, ...]
    room: int
    slack: int
