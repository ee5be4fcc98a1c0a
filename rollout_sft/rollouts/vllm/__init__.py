"""Generates rollouts with vLLM: one file for each way to reach an engine and to bring it the weights."""

WORKER_EXTENSION = "rollout_sft.rollouts.vllm.worker.RolloutWorker"
"""The class with which vLLM extends its workers."""
