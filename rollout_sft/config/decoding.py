"""Defines the decoding arguments that every backend understands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rollout_sft.config.keys import Range, check_fields


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """
    Says how responses are sampled (`rollout_matching.decoding`).

    Args:
        max_new_tokens (`int`, *optional*, defaults to 256):
            The most tokens generated per response; a response that is cut there is reported as truncated.
        temperature (`float`, *optional*, defaults to 0.0):
            0 is greedy; above 0, logits are divided by it before sampling.
        top_p (`float`, *optional*, defaults to 1.0):
            Keeps the smallest set of tokens whose probability reaches it; 1 keeps all.
        top_k (`int`, *optional*, defaults to 0):
            Keeps the k likeliest tokens; 0 keeps all.
        min_p (`float`, *optional*, defaults to 0.0):
            Drops tokens less likely than this share of the likeliest one's probability; 0 drops none.
        repetition_penalty (`float`, *optional*, defaults to 1.0):
            Divides the scores of tokens already seen; 1 changes nothing.
    """

    max_new_tokens: Annotated[int, Range(takes="an integer of 1 or more", at_least=1)] = 256
    temperature: Annotated[float, Range(takes="0 (greedy) or more", at_least=0)] = 0.0
    top_p: Annotated[float, Range(takes="more than 0 and at most 1", more_than=0, at_most=1)] = 1.0
    top_k: Annotated[int, Range(takes="0 (all tokens) or more", at_least=0)] = 0
    min_p: Annotated[float, Range(takes="between 0 and 1", at_least=0, at_most=1)] = 0.0
    repetition_penalty: Annotated[float, Range(takes="more than 0", more_than=0)] = 1.0

    def __post_init__(self) -> None:
        check_fields(self, "rollout_matching.decoding")
