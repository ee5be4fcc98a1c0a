"""Turns loss reductions into token weights that are fixed for the window, so that no schedule changes the gradient.

    token      every supervised token counts the same           sum(w * ce) / sum(w)
    segment    every segment counts the same                    mean over segments of its token mean
    micro      every raw micro-batch counts the same            mean over micro-batches of their token means

Each reduction rescales a segment's weights when the segment is built. The loss is then always divided by the sum of
the rescaled weights over the window and the ranks: the number of tokens, segments or micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rollout_sft.inputs.segment import Segment


def rescale(micro_batch: Sequence[Segment], reduction: str) -> list[Segment]:
    """
    Rescales the weights of one raw micro-batch's segments.

    Args:
        micro_batch (`Sequence[Segment]`):
            All segments of the micro-batch, before any is packed.
        reduction (`str`):
            `token`, `segment` or `micro`.

    Returns:
        `list[Segment]`: the segments with rescaled `weights` and `weight_sum`. A segment without supervision is
        returned unchanged.
    """
    if reduction == "token":
        return list(micro_batch)
    whole = sum(segment.weight_sum for segment in micro_batch)
    return [
        _scaled(s, 1 / (s.weight_sum if reduction == "segment" else whole)) if s.weight_sum else s for s in micro_batch
    ]


def _scaled(segment: Segment, factor: float) -> Segment:
    weights = segment.weights.double() * factor
    return replace(segment, weights=weights, weight_sum=segment.weight_sum * factor)
