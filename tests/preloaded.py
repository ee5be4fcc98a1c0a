"""What every process that trains imports; see `processes.py`."""

import torch.distributed
from transformers import Qwen3ForCausalLM

import examples.digits.data
import rollout_sft.checkpoint.finished
import rollout_sft.trainer
import tests.tiny

__all__ = ["Qwen3ForCausalLM", "examples", "rollout_sft", "tests", "torch"]
