"""Rollouts by vLLM: one file for each way to reach an engine and to hand it the weights."""
