"""The decoding knobs every backend understands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """
    How responses are sampled (`rollout_matching.decoding`).

    Args:
        max_new_tokens (`int`, *optional*, defaults to 256):
            Tokens generated at most per response; a response cut there is reported as truncated.
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

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "an integer of 1 or more"),
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_p": (0 < self.top_p <= 1, "more than 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 (all tokens) or more"),
            "min_p": (0 <= self.min_p <= 1, "between 0 and 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "more than 0"),
        }
        for name, (holds, takes) in rules.items():
            if not holds:
                raise ValueError(f"rollout_matching.decoding.{name} is {getattr(self, name)}; it takes {takes}.")
