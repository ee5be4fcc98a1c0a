"""Defines the cost of a segment: with varlen attention a forward/backward pass costs the sum over its segments."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import SupportsIndex

from packsched.arguments import check_ordered, checked_count
from packsched.errors import PackingError


@dataclass(frozen=True)
class SegmentCost:
    """Computes `linear * l + quadratic * l^2` for a segment of l tokens, in arbitrary integer units.

    The quadratic part is the attention among the segment's own tokens. With varlen attention the packing does not
    change a window's total cost, only how the cost is spread over packs and ranks.

    >>> SegmentCost(linear=10, quadratic=1)(5)
    75
    """

    linear: int
    quadratic: int = 0

    def __call__(self, length: int) -> int:
        """Returns the cost of one segment of `length` tokens."""
        return length * (self.linear + self.quadratic * length)

    @classmethod
    def of_model(cls, *, width: SupportsIndex, depth: SupportsIndex, vocabulary: SupportsIndex) -> "SegmentCost":
        """Makes the cost model of a decoder from its shape.

        Args:
            width: Hidden size of the model.
            depth: Number of layers.
            vocabulary: Number of tokens the output head scores at every position (0 if it is negligible).

        A token takes `12 * depth * width^2` multiplications in the layers and `vocabulary * width` in the head; a pair
        of a token and an earlier one takes `2 * depth * width`. All are divided by `width`: only ratios matter.

        Source: D. Narayanan et al., "Efficient large-scale language model training on GPU clusters using
        Megatron-LM", SC 2021, appendix; attention halved because it is causal.

        >>> SegmentCost.of_model(width=128, depth=4, vocabulary=96)
        SegmentCost(linear=6240, quadratic=4)
        """
        width, depth = checked_count("width", width), checked_count("depth", depth)
        vocabulary = checked_count("vocabulary", vocabulary, minimum=0)
        return cls(linear=12 * depth * width + vocabulary, quadratic=depth)


# A decoder of about two billion parameters (width 2048, 28 layers, 151,936 tokens).
DEFAULT_COST = SegmentCost.of_model(width=2048, depth=28, vocabulary=151_936)


def costs_by_length(cost: Callable[[int], int], lens: Iterable[int]) -> dict[int, int]:
    """Returns the cost of every length, checked: positive integers that never fall when the length grows."""
    table = {length: cost(length) for length in sorted(set(lens))}
    for length, value in table.items():
        if type(value) is not int or value < 1:
            raise PackingError(f"cost({length}) is {value!r}; costs are positive integers (scale and round them).")
    for shorter, longer in pairwise(table):
        if table[longer] < table[shorter]:
            raise PackingError(
                f"cost({longer}) is {table[longer]}, less than cost({shorter}), {table[shorter]}; a longer segment "
                "costs at least as much as a shorter one."
            )
    return table


def checked_costs(costs: Iterable[SupportsIndex], segments: int) -> list[int]:
    """Returns one cost for each of `segments` segments as plain integers of at least 1, or raises `PackingError`."""
    check_ordered("the costs are", costs, "integers, one for each segment")
    given = list(costs)
    if len(given) != segments:
        raise PackingError(f"there are {len(given)} costs for {segments} segments; give one for each.")
    # Plain integers, the usual case, need no message each: a thousand ranks give their costs in one call.
    plain = [cost for cost in given if type(cost) is int and cost >= 1]
    if len(plain) == segments:
        return plain
    return [checked_count(f"the cost of segment {index}", cost) for index, cost in enumerate(given)]
