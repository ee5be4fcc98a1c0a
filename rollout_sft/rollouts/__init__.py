"""Rollout backends: the protocol, Hugging Face generate, vLLM, and their life within a trainer."""
