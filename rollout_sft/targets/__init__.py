"""Builds the segment to train from a sample and a rollout: the protocol, and the builder for objects."""

from rollout_sft.targets.token_decisions import Decisions, token_decisions
from rollout_sft.targets.token_text import SpelledText, Speller

__all__ = ["Decisions", "SpelledText", "Speller", "token_decisions"]
