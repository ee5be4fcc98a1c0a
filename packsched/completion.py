"""Bin completion: the exact search, within a budget of nodes.

Packs are filled one at a time, the longest remaining segment pinned. Instead of placing segments one by one, a
node chooses a whole completion of that pack. Only completions matter that waste no more than the slack still
left and to which no remaining segment could be added. Exhausting the tree proves that there is no plan.
"""

from collections.abc import Iterator, Sequence

from packsched.bounds import martello_toth_bound


class OutOfNodesError(Exception):
    """The budget ended before the search did: nothing is proven."""


def bin_completion(lengths: Sequence[int], packing_length: int, packs: int, nodes: int) -> list[list[int]] | None:
    """At most `packs` packs of positions in `lengths` (longest first), or None: proven that there are none.

    Cost: exponential; at most `nodes` steps of about a microsecond, plus a bound and one bitset for each pack
    begun.

    Raises:
        OutOfNodesError: after `nodes` steps without an answer.

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
        if not left:
            return []
        state = tuple(self.lengths[position] for position in left)
        if state in self.failed:
            return None
        if martello_toth_bound(state, self.packing_length) <= packs:
            pinned = left[0]
            room = self.packing_length - state[0]
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
        fits = (1 << room + 1) - 1
        reach = [1] * (len(items) + 1)
        for k in range(len(items) - 1, -1, -1):
            reach[k] = reach[k + 1] | reach[k + 1] << lengths[k] & fits
        chosen: list[int] = []

        def extend(k: int, room: int, shortest_skipped: int) -> Iterator[list[int]]:
            self.nodes -= 1
            if self.nodes < 0:
                raise OutOfNodesError
            waste = min(room, slack, shortest_skipped - 1)
            if not reach[k] >> room - waste & ((1 << waste + 1) - 1):
                return
            while k < len(items) and lengths[k] > room:
                k += 1
            if k == len(items):
                yield [items[at] for at in chosen]
                return
            length = lengths[k]
            chosen.append(k)
            yield from extend(k + 1, room - length, shortest_skipped)
            chosen.pop()
            after = k + 1
            while after < len(items) and lengths[after] == length:
                after += 1
            yield from extend(after, room, min(shortest_skipped, length))

        return extend(0, room, room + 1)
