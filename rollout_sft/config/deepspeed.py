"""Starts DeepSpeed, and refuses configurations with which a run would fail late or end without its weights."""

from __future__ import annotations

from typing import Any

from accelerate.state import AcceleratorState
from transformers import TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config

GATHER = "zero_optimization.stage3_gather_16bit_weights_on_model_save"
"""The key with which a run under stage 3 writes whole weights."""


def check_deepspeed(arguments: TrainingArguments, *, skips_steps: bool) -> None:
    """
    Checks the configuration of DeepSpeed, from `training.deepspeed` or from `accelerate launch`.

    Args:
        arguments (`TrainingArguments`):
            The arguments, after their `__post_init__`; without DeepSpeed nothing is checked.
        skips_steps (`bool`):
            Whether `rollout_matching.on_non_finite` is `skip`.

    Raises:
        `ValueError`: the ZeRO stage is 0, stage 3 would end without `model.safetensors`, a value differs from its
            counterpart in `training`, or steps are to be skipped.
    """
    plugin: Any = arguments.deepspeed_plugin
    if plugin is None:
        return
    given = plugin.hf_ds_config
    if not given.get_value("zero_optimization.stage", 0):
        raise ValueError(
            "training.deepspeed has zero_optimization.stage 0, the default, which shards nothing and is refused: "
            "without ZeRO DeepSpeed reports no norm of the gradient, so a step that is not finite would not be seen. "
            "Set stage 1, 2 or 3, or remove training.deepspeed and train with DDP, which does the same."
        )
    if given.is_zero3() and not given.is_true(GATHER):
        raise ValueError(
            f"training.deepspeed has ZeRO stage 3, but {GATHER} is not true, so the run would end without "
            f'model.safetensors. Add it: {{"zero_optimization": {{"stage": 3, "{GATHER.partition(".")[2]}": '
            "true}}."
        )
    if mismatches := getattr(given, "mismatches", ()):
        listed = "; ".join(line.removeprefix("- ds ").replace(" vs hf ", ", but training.") for line in mismatches)
        raise ValueError(f'training.deepspeed has {listed}. Set these values of training.deepspeed to "auto".')
    if skips_steps:
        raise ValueError(
            "rollout_matching.on_non_finite is skip, but DeepSpeed steps its optimizer inside the last backward of a "
            "window, before the norm of the gradient is known, so no step can be skipped. Set it to raise."
        )


def start_communication(arguments: TrainingArguments) -> None:
    """
    Starts DeepSpeed's communication on a CPU, where transformers does not; without it stage 3 shards over one rank.

    With `use_cpu` transformers 5.23 makes the process group without DeepSpeed (`TrainingArguments._setup_devices`), and
    `deepspeed.initialize` comes after the weights are loaded.
    """
    if arguments.deepspeed and arguments.use_cpu and arguments.world_size > 1:
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")


def select_deepspeed(arguments: TrainingArguments) -> None:
    """
    Makes accelerate and transformers use the DeepSpeed configuration of these arguments.

    All stages of a run are read before the first one trains: transformers then knows the last one's configuration, and
    accelerate 1.15 refuses to leave that of an earlier trainer.
    """
    if arguments.deepspeed_plugin is not None:
        AcceleratorState._reset_state()
        set_hf_deepspeed_config(arguments.deepspeed_plugin.hf_ds_config)
