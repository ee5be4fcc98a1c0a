"""Proves by column generation that a window needs more packs: the strongest bound, and the dearest.

- Every length gets a weight. A pattern is a set of segments that fits into one pack. If no pattern weighs more than V,
  a window whose segments weigh W together needs at least `W / V` packs. Weights that follow the tokens give the volume
  bound.
- A simplex method over the patterns found so far computes better weights. The heaviest patterns under the new weights
  join them, until the weights prove enough or the work ends.
- Weights come from floating-point numbers, but the proof does not: weights are rounded to integers, and the heaviest
  pattern is found exactly. Sums are made in a fixed order, element by element, so the weights are the same everywhere.

It proves four of five windows that all other stages leave undecided, in about 20 ms for 100 different lengths.

Sources: P. C. Gilmore and R. E. Gomory, "A linear programming approach to the cutting-stock problem", Operations
Research 9 (1961); the bound from weights that are not optimal: A. A. Farley, "A note on bounding a class of linear
programming problems, including cutting stock problems", Operations Research 38 (1990); the mixture of old and new
weights: P. Wentges, "Weighted Dantzig-Wolfe decomposition", International Transactions in Operational Research 4
(1997).
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

# The weight of a full pack: finer weights prove a little more and take longer.
_FULL = 4096
# Patterns that join at a time.
_PATTERNS = 16
# How much of the best weights so far is in the next ones; the rest is what the simplex method computed.
_OLD_SHARE = 0.7
# What a pivot, and an item of the heaviest patterns, costs beside its array, in numbers of the array.
_PIVOT_COST, _ITEM_COST = 16384, 4096
# Work below this, times the square of the number of different lengths, hardly ever proves anything.
_LEAST_WORK = 2000
_EPSILON = 1e-9
_NEVER = 1 << 30

Pattern = tuple[int, ...]
"""Numbers of lengths, one for each segment of a pack."""


def column_generation(lengths: Sequence[int], packing_length: int, packs: int, work: int) -> int | None:
    """Returns a bound above `packs` of the packs that `lengths` (longest first) need, or None if it finds none.

    Cost: at most `work` numbers computed, a few nanoseconds each. With m different lengths a pivot counts m * m, and
    the heaviest patterns up to 4096 for each item.
    """
    segments = Counter(lengths)
    kinds, counts = list(segments), list(segments.values())
    if not kinds or work < _LEAST_WORK * len(kinds) ** 2:
        return None
    # No weight has to be higher: this many of the length fit into one pack.
    highest = [1 / (packing_length // length) for length in kinds]
    best, best_weights = 0.0, [length / packing_length for length in kinds]
    master = _Master(counts, highest)
    old_share = _OLD_SHARE
    while work > 0:
        fresh = [min(max(0.0, weight), most) for weight, most in zip(master.weights(), highest, strict=True)]
        mixed = [old_share * old + (1 - old_share) * new for old, new in zip(best_weights, fresh, strict=True)]
        weights = [int(_FULL * weight) for weight in mixed]
        heaviest, patterns, spent = heaviest_patterns(weights, kinds, counts, packing_length)
        work -= spent
        if not heaviest:
            return None
        total = sum(weight * count for weight, count in zip(weights, counts, strict=True))
        bound = -(-total // heaviest)
        if bound > packs:
            return bound
        if total / heaviest > best:
            best, best_weights = total / heaviest, mixed
        if master.add(patterns):
            old_share = _OLD_SHARE
        elif old_share:
            old_share = old_share / 2 if old_share > 0.1 else 0.0
        else:
            return None  # the weights are as good as their rounding allows
        while work > 0 and master.pivot():
            work -= len(kinds) ** 2 + _PIVOT_COST
            if master.packs <= packs + _EPSILON:
                return None  # fractions of patterns fit into the packs, so no weights prove anything
    return None


class _Master:
    """The simplex method over the patterns found so far: packs in fractions, as few as cover every length.

    Begins with one pattern for each length, of nothing but this length, filled to the end.
    """

    def __init__(self, counts: Sequence[int], highest: Sequence[float]) -> None:
        size = len(counts)
        self.inverse = np.diag(np.array(highest))
        self.used = np.array(counts) * np.array(highest)  # how much of each pattern of the basis
        self.packs = float(sum(self.used.tolist()))
        self.weight = np.append(np.array(highest), 0.0)  # the last one stands for no segment
        self.known: set[Pattern] = set()
        self.patterns = np.full((0, 1), size)

    def weights(self) -> list[float]:
        """Returns the weight of each length: its price in packs."""
        weights: list[float] = self.weight[:-1].tolist()
        return weights

    def add(self, patterns: Sequence[Pattern]) -> bool:
        """Adds patterns; returns whether one of those it did not know weighs more than a pack."""
        new = [pattern for pattern in patterns if pattern not in self.known]
        self.known.update(new)
        if not new:
            return False
        nothing = len(self.weight) - 1
        width = max(self.patterns.shape[1], *map(len, new))
        rows = np.full((len(self.patterns) + len(new), width), nothing)
        rows[: len(self.patterns), : self.patterns.shape[1]] = self.patterns
        for row, pattern in zip(rows[len(self.patterns) :], new, strict=True):
            row[: len(pattern)] = pattern
        before, self.patterns = len(self.patterns), rows
        return bool((self._weighed()[before:] > 1 + _EPSILON).any())

    def pivot(self) -> bool:
        """Lets the heaviest pattern enter the basis; returns False if none weighs more than a pack."""
        weighed = self._weighed()
        entering = int(weighed.argmax()) if len(weighed) else -1
        if entering < 0 or weighed[entering] <= 1 + _EPSILON:
            return False
        column = np.zeros(len(self.used))
        for kind in self.patterns[entering].tolist():
            if kind < len(column):
                column += self.inverse[:, kind]
        ratios = np.full(len(column), np.inf)
        np.divide(self.used, column, out=ratios, where=column > _EPSILON)
        leaving = int(ratios.argmin())
        step, gain = float(ratios[leaving]), float(weighed[entering]) - 1
        self.used -= step * column
        self.used[leaving] = step
        row = self.inverse[leaving] / column[leaving]
        self.inverse -= column[:, None] * row
        self.inverse[leaving] = row
        self.weight[:-1] -= gain * row
        self.packs -= gain * step
        return True

    def _weighed(self) -> np.ndarray:
        # One column after the other: numpy's own sums may differ in the last bit between machines.
        weighed = np.zeros(len(self.patterns))
        for column in self.patterns.T:
            weighed += self.weight[column]
        return weighed


def heaviest_patterns(
    weights: Sequence[int], kinds: Sequence[int], counts: Sequence[int], packing_length: int
) -> tuple[int, list[Pattern], int]:
    """Returns the weight of the heaviest pattern, exactly, patterns of the highest weights, and the work it took.

    The table has the fewest tokens for each weight. Equal segments join in groups of 1, 2, 4, ...

    Args:
        weights: The weight of each length, not all zero.
        kinds: The lengths, each once.
        counts: How many segments have each length.
        packing_length: The cap of a pack.
    """
    items = [
        (weight * size, length * size, kind, size)
        for kind, (weight, length, count) in enumerate(zip(weights, kinds, counts, strict=True))
        if weight
        for size in _groups(min(count, packing_length // length))
    ]
    most = _most_weight(items, packing_length)
    tokens = np.full((len(items) + 1, most + 1), _NEVER, np.int32)
    tokens[0, 0] = 0
    for at, (weight, length, _, _) in enumerate(items):
        tokens[at + 1] = tokens[at]
        if weight <= most:
            np.minimum(tokens[at, weight:], tokens[at, : most + 1 - weight] + length, out=tokens[at + 1, weight:])
    reached = np.flatnonzero(tokens[-1] <= packing_length)
    patterns = []
    for weight in reached[: -_PATTERNS - 1 : -1].tolist():
        pattern: list[int] = []
        for at in range(len(items) - 1, -1, -1):
            if tokens[at, weight] > tokens[at + 1, weight]:
                pattern += [items[at][2]] * items[at][3]
                weight -= items[at][0]
        patterns.append(tuple(pattern))
    return int(reached[-1]), patterns, len(items) * (most + _ITEM_COST)


def _groups(count: int) -> list[int]:
    sizes = []
    size = 1
    while count:
        sizes.append(min(size, count))
        count -= sizes[-1]
        size *= 2
    return sizes


def _most_weight(items: Sequence[tuple[int, int, int, int]], packing_length: int) -> int:
    """Returns a weight that no pattern exceeds: items with most weight a token, the last of them in part."""
    room, most = packing_length, 0
    for weight, length, _, _ in sorted(items, key=lambda item: -item[0] / item[1]):
        if length > room:
            return most + weight * room // length + 1  # one more than rounding in the order could hide
        room -= length
        most += weight
    return most
