"""Generates rollouts: the backend protocol, Hugging Face generate, vLLM, and the backends of a trainer."""
