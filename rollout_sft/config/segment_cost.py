"""Defines `rollout_matching.segment_cost`: what a segment costs, by which ranks and packs are levelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rollout_sft.config.keys import Range, check_fields

_Count = Annotated[int, Range(takes="an integer of 0 or more", at_least=0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentCostConfig:
    """
    Says what the parts of a segment cost (`rollout_matching.segment_cost`); only ratios count.

    Args:
        token (`int`, *optional*, defaults to 0):
            For each token. 0 takes this and all other costs from the model's configuration.
        pair (`int`, *optional*, defaults to 0):
            Times the square of the segment's tokens: attention.
        supervised (`int`, *optional*, defaults to 0):
            For each position whose logits the loss reads.
        patch (`int`, *optional*, defaults to 0):
            For each patch of an image, in the image tower.
        patch_pair (`int`, *optional*, defaults to 0):
            Times the square of an image's patches.
    """

    token: _Count = 0
    pair: _Count = 0
    supervised: _Count = 0
    patch: _Count = 0
    patch_pair: _Count = 0

    def __post_init__(self) -> None:
        check_fields(self, "rollout_matching.segment_cost")
        if not self.token and (self.pair or self.supervised or self.patch or self.patch_pair):
            raise ValueError(
                "rollout_matching.segment_cost.token is 0, but other costs are set; give the cost of a token as well, "
                "or leave all of them out to take them from the model's configuration."
            )
