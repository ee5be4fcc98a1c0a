"""Generates rollouts with vLLM: one file for each way to reach an engine and to bring it the weights."""

INSTALL = "Install it: pip install 'packsched[train,vllm]', or see docs/vllm.md for machines without a GPU."
"""What to do where vLLM is missing."""

WORKER_EXTENSION = "rollout_sft.rollouts.vllm.worker.RolloutWorker"
"""The class with which vLLM extends its workers."""
