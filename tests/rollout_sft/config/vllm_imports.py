"""Prints whether vLLM is imported with what may use it; started by test_vllm.py."""

import sys

import rollout_sft.rollouts.vllm.colocated
import rollout_sft.rollouts.vllm.server
import rollout_sft.serve
import rollout_sft.train  # noqa: F401

if __name__ == "__main__":
    print("vllm" in sys.modules)
