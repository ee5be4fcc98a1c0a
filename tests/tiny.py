"""The model and the arguments that all tests of the trainer start from: small enough to train in a second."""

import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import Qwen3Config
from transformers.distributed import DistributedConfig

from rollout_sft import RolloutSFTConfig

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 48,
}
QUIET = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "packing_min_fill_ratio": 0.0,
}


def tiny_config(tokenizer, **overrides):
    return Qwen3Config(
        **{
            **SHAPE,
            "vocab_size": len(tokenizer),
            "initializer_range": 0.2,
            "eos_token_id": tokenizer.eos_token_id,
            **overrides,
        }
    )


def tiny_arguments(folder, **overrides):
    """Windows of 3 x 3 samples, unclipped gradients, one optimizer step, nothing saved."""
    return RolloutSFTConfig(
        **{
            **QUIET,
            "output_dir": str(folder),
            "global_max_length": 320,
            "per_device_train_batch_size": 3,
            "gradient_accumulation_steps": 3,
            "max_steps": 1,
            "max_grad_norm": 0.0,
            "decoding": {"max_new_tokens": 24},
            "save_strategy": "no",
            "train_sampling_strategy": "sequential",
            **overrides,
        }
    )


def shard_on_cpus(config):
    """Lets accelerate shard: it ignores `fsdp` where the ranks have CPUs, though all of it runs there."""
    assert config.device.type == "cpu"  # reading it makes the state
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def shard_in_memory(model):
    """Shards this model over all ranks by FSDP2, by the same plan as [`shard`]; nothing is saved and loaded."""
    if len(dict(model.named_parameters(remove_duplicate=False))) > len(dict(model.named_parameters())):
        model._fsdp_plan = {"the whole model": "free_full_weight"}  # shared weights must be in one group
    parts, _, mesh = type(model).prepare_distribute_model(DistributedConfig(fsdp_size=dist.get_world_size()))
    return type(model).maybe_distribute_model(model, parts, mesh)


def shard(model, folder):
    """The same weights, sharded over all ranks by FSDP2 as transformers loads them."""
    if dist.get_rank() == 0:
        model.save_pretrained(folder / "weights")
    dist.barrier()
    parts = DistributedConfig(fsdp_size=dist.get_world_size())
    return type(model).from_pretrained(folder / "weights", dtype=model.dtype, distributed_config=parts)
