"""What every process that trains imports; see `processes.py`."""

import torch.distributed
from transformers import Qwen3ForCausalLM

import rollout_sft.checkpoint.finished
import rollout_sft.data.digits
import rollout_sft.trainer
import tests.tiny

__all__ = ["Qwen3ForCausalLM", "rollout_sft", "tests", "torch"]
