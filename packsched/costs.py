"""Defines the cost of a segment: with varlen attention a forward/backward pass costs the sum over its segments."""

from dataclasses import dataclass
from typing import SupportsIndex

from packsched.arguments import checked_count


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
