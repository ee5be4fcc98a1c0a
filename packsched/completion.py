"""Bin completion: the exact search, within a budget of nodes.

Packs are filled one at a time, the longest remaining segment pinned. Instead of placing segments one by one, a
node chooses a whole completion of that pack. Only completions matter that waste no more than the slack still
left and to which no remaining segment could be added. Exhausting the tree proves that no plan exists.
"""

from collections.abc import Iterator


class OutOfNodesError(Exception):
    """The node budget ended before the search did: nothing is proven."""


def bin_completion(lengths: list[int], packing_length: int, packs: int, nodes: int) -> list[list[int]] | None:
    """Place all of `lengths` (longest first) in at most `packs` packs, or return None, which is a proof.

    Raises:
        OutOfNodesError: after `nodes` steps without an answer.

    Source: R. E. Korf, "A new algorithm for optimal bin packing", AAAI 2002; I. Gent (1998) for the order.
    """
    slack = packs * packing_length - sum(lengths)
    if slack < 0:
        return None
    search = _Completion(lengths, packing_length, nodes)
    return search.fill(list(range(len(lengths))), packs, slack)


class _Completion:
    def __init__(self, lengths: list[int], packing_length: int, nodes: int) -> None:
        self.lengths = lengths
        self.packing_length = packing_length
        self.nodes = nodes
        self.failed: set[tuple[int, ...]] = set()

    def fill(self, left: list[int], packs: int, slack: int) -> list[list[int]] | None:
        if not left:
            return []
        if packs == 0:
            return None
        state = tuple(self.lengths[position] for position in left)
        if state in self.failed:
            return None
        pinned = left[0]
        room = self.packing_length - self.lengths[pinned]
        for chosen in self.completions(left[1:], room, slack):
            taken = set(chosen)
            rest = [position for position in left[1:] if position not in taken]
            waste = room - sum(self.lengths[position] for position in chosen)
            below = self.fill(rest, packs - 1, slack - waste)
            if below is not None:
                return [[pinned, *chosen], *below]
        self.failed.add(state)
        return None

    def completions(self, items: list[int], room: int, slack: int) -> Iterator[list[int]]:
        """Maximal subsets of `items` that leave at most `slack` of `room`, longest segments first."""
        lengths = [self.lengths[position] for position in items]
        # reach[k]: bit s set when some subset of items[k:] sums to s; cuts every branch without a completion.
        reach = [1] * (len(items) + 1)
        for k in range(len(items) - 1, -1, -1):
            reach[k] = reach[k + 1] | reach[k + 1] << lengths[k]
        chosen: list[int] = []

        def extend(k: int, room: int, shortest_skipped: int) -> Iterator[list[int]]:
            self.nodes -= 1
            if self.nodes < 0:
                raise OutOfNodesError
            if k == len(items):
                if room <= slack and room < shortest_skipped:
                    yield [items[at] for at in chosen]
                return
            low = max(0, room - min(slack, shortest_skipped - 1))
            if not reach[k] >> low & ((1 << (room - low + 1)) - 1):
                return
            length = lengths[k]
            if length <= room:
                chosen.append(k)
                yield from extend(k + 1, room - length, shortest_skipped)
                chosen.pop()
            after = k + 1
            while after < len(items) and lengths[after] == length:
                after += 1
            yield from extend(after, room, min(shortest_skipped, length))

        return extend(0, room, room + 1)
