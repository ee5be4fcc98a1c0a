"""What every process that trains imports and computes once, before it is forked; see `processes.py`."""

import gc
import tempfile

import binpacking
import torch
import torch.distributed
from transformers import Qwen3ForCausalLM

import rollout_sft.checkpoint.manifest
import rollout_sft.trainer
from examples.digits.data import DigitsDataset
from examples.digits.tokenizer import build_digits_tokenizer
from tests.tiny import tiny_config

__all__ = ["binpacking", "rollout_sft", "torch"]

with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
    DigitsDataset("train", 1)[0]  # makes the codebook of patches
    Qwen3ForCausalLM(tiny_config(build_digits_tokenizer())).save_pretrained(folder)  # makes transformers' weight names
# Every trainer collects garbage as it starts to train. What is here now stays anyway and need not be looked through.
gc.collect()
gc.freeze()
