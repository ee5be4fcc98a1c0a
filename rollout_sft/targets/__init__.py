"""Builds the segment to train from a sample and a rollout: the protocol, and the builder for objects."""

from rollout_sft.rollouts.end_tokens import EndTokens, find_end_tokens
from rollout_sft.targets.token_decisions import Decisions, token_decisions
from rollout_sft.targets.token_text import SpelledText, Speller

__all__ = ["Decisions", "EndTokens", "SpelledText", "Speller", "find_end_tokens", "token_decisions"]
