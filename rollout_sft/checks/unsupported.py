"""Refuses models, arguments and data that would silently train wrongly, differently or not at all."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedTokenizerBase, SchedulerType, Trainer, get_scheduler
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import has_length
from transformers.training_args import OptimizerNames

from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.config.releases import CACHE_ARGUMENTS
from rollout_sft.config.shorten import cut, shorten
from rollout_sft.inputs.segment import SUPERVISED, Segment
from rollout_sft.model.forward import forward_names
from rollout_sft.model.layer_kinds import recurrent_layers
from rollout_sft.model.quantized import is_quantized
from rollout_sft.model.wrappers import base_model
from rollout_sft.rollouts.base import StreamingBackend

logger = logging.getLogger(__name__)

_HOOKS = {
    "data_collator": "packs are built from raw samples inside the trainer",
    "compute_loss_func": (
        "the loss is the cross-entropy that segments weight, divided by the weight of the whole window. Set the "
        "weights in a TargetBuilder, or rollout_matching.loss_reduction"
    ),
    "compute_metrics": "evaluation scores rollouts and has no labels. Report scores from TargetBuilder.score",
    "preprocess_logits_for_metrics": (
        "evaluation scores rollouts and keeps no logits. Report scores from TargetBuilder.score"
    ),
}


def reject_wrong_types(model: object, args: object, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Raises `ValueError` for a `model` or `args` of the wrong type, and for a tokenizer without an end token."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model is {_kind(model)}; give a model with its weights, such as "
            "AutoModelForCausalLM.from_pretrained(name)."
        )
    if not isinstance(args, RolloutSFTConfig):
        raise ValueError(
            f"args is {_kind(args)}; give a RolloutSFTConfig, which takes all arguments of TrainingArguments and this "
            "trainer's own."
        )
    if tokenizer is None or tokenizer.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no end token, so no response could end; set tokenizer.eos_token to one of its tokens."
        )


def _kind(given: object) -> str:
    if given is None:
        return "None"
    if isinstance(given, str):
        return f"the text {given!r}"
    return f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"


def reject_hooks(arguments: Mapping[str, Any]) -> None:
    """
    Raises `ValueError` for hooks of `Trainer` that this trainer would never call.

    Args:
        arguments (`Mapping[str, Any]`):
            Keyword arguments for `Trainer`; None counts as not given.
    """
    for name, reason in _HOOKS.items():
        if arguments.get(name) is not None:
            raise ValueError(f"{name} is refused, since it would never be called: {reason}.")


@contextmanager
def naming_reports(config: RolloutSFTConfig) -> Iterator[None]:
    """Raises `ValueError` with the key where a service of `training.report_to` needs a package that is missing."""
    try:
        yield
    except RuntimeError as error:
        if "to be installed" not in str(error):
            raise
        services = ", ".join(config.report_to or ())
        raise ValueError(f"training.report_to is {services}, which cannot be used here: {error}") from error


def check_optimizer(model: nn.Module, config: RolloutSFTConfig) -> None:
    """Raises `ValueError` for an optimizer that cannot be made here, hours before the first step would fail on it."""
    try:
        Trainer.get_optimizer_cls_and_kwargs(config, model)  # type: ignore[arg-type]
    except (ImportError, ValueError) as error:
        name = OptimizerNames(config.optim).value
        raise ValueError(f"training.optim is {name}, which cannot be used here: {error}") from error


def check_scheduler(config: RolloutSFTConfig) -> None:
    """Raises `ValueError` for a schedule of the learning rate that cannot be made, before anything runs."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    name, given = SchedulerType(config.lr_scheduler_type).value, config.lr_scheduler_kwargs
    try:
        get_scheduler(
            config.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=config.get_warmup_steps(100),
            num_training_steps=100,
            scheduler_specific_kwargs=dict(given) if isinstance(given, Mapping) else None,
        )
    except (TypeError, ValueError) as error:
        keywords = f"with training.lr_scheduler_kwargs {shorten(given)}" if given else "without lr_scheduler_kwargs"
        raise ValueError(
            f"training.lr_scheduler_type is {name}, which cannot be made {keywords}: {cut(str(error), 300)}. Set "
            "training.lr_scheduler_kwargs to what it takes, or choose another lr_scheduler_type."
        ) from error


def check_best_metric(metrics: Mapping[str, float], config: RolloutSFTConfig) -> None:
    """Raises `ValueError` where the evaluation before training lacks `metric_for_best_model`; a later one would end."""
    name = config.metric_for_best_model
    if name is None or not metrics or f"eval_{name.removeprefix('eval_')}" in metrics:
        return
    scores = [key.removeprefix("eval_") for key in metrics if not key.endswith(("_runtime", "_per_second"))]
    raise ValueError(
        f"training.metric_for_best_model is {shorten(name)}, which evaluation does not report; it takes one of "
        f"{', '.join(key for key in scores if key != 'epoch')}."
    )


def check_model(model: nn.Module, config: RolloutSFTConfig, *, sharded: bool) -> None:
    """
    Raises `ValueError` for a model that would be trained wrongly, and warns of dropout where packs are trained.

    Args:
        model (`nn.Module`):
            The unwrapped model.
        config (`RolloutSFTConfig`):
            How the model will be trained.
        sharded (`bool`):
            Whether FSDP or DeepSpeed shards the gradients.
    """
    reject_own_loss(model)
    reject_virtual_tokens(model)
    if config.packing:
        reject_unknown_positions(model)
        reject_unfound_state(model)
        warn_about_dropout(model)
    if config.rollout_backend == "vllm" and is_quantized(model):
        raise ValueError(
            "rollout_matching.rollout_backend is vllm, which takes whole weights, but the model's weights are "
            "quantized: merging the adapter into them and taking it out again would change them. Set "
            "rollout_backend: hf, or remove model.quantization_config."
        )
    if sharded and config.validate_schedule != "off":
        raise ValueError(
            f"rollout_matching.validate_schedule is {config.validate_schedule}, which compares whole gradients, but "
            "FSDP and DeepSpeed shard them. Validate the same configuration on one process or with DDP."
        )


def reject_unknown_positions(model: nn.Module) -> None:
    """Raises `ValueError` when the model's forward takes no `position_ids`."""
    names = forward_names(model)
    if names is not None and "position_ids" not in names:
        raise ValueError(
            f"{type(model).__name__}.forward takes no position_ids, so it cannot tell packed segments apart: they "
            "would attend to each other silently. Use a model that does, or set training.packing: false."
        )


def reject_unfound_state(model: nn.Module) -> None:
    """Raises `ValueError` when the model carries a state along the row and none of its layers is known to take it."""
    base = base_model(model)
    if getattr(base, "_is_stateful", False) and not recurrent_layers(base):
        raise ValueError(
            f"{type(base).__name__} carries a state along the row, and none of its layers takes it by a known argument "
            f"({', '.join(sorted(CACHE_ARGUMENTS))}), so it would cross the borders of packed segments. Set "
            "training.packing: false, or take a tested version of transformers (docs/versions.md)."
        )


def reject_own_loss(model: nn.Module) -> None:
    """Raises `ValueError` when the model would add an auxiliary loss."""
    if getattr(getattr(model, "config", None), "output_router_logits", False):
        raise ValueError(
            "model.config.output_router_logits is true: the router's auxiliary loss is a mean over the tokens of one "
            "forward, so it would depend on the packing, and this trainer does not add it. Set it to false."
        )


def reject_virtual_tokens(model: nn.Module) -> None:
    """Raises `ValueError` for PEFT's prompt learning: prompt tuning, P-tuning and prefix tuning."""
    adapter: Any = getattr(model, "active_peft_config", None)
    if getattr(adapter, "is_prompt_learning", False):
        kind = getattr(adapter.peft_type, "value", adapter.peft_type)
        raise ValueError(
            f"the model's active PEFT adapter is {kind} with {adapter.num_virtual_tokens} virtual tokens, which is "
            "refused: they stand before a row and not before each segment, and shift the positions behind them, so "
            "targets would not meet their logits. Use an adapter that changes weights instead, such as LoRA."
        )


def check_waves_run_here(config: RolloutSFTConfig, backend: object, *, deepspeed: bool) -> None:
    """
    Raises `ValueError` for waves with DeepSpeed, and warns where a backend hands out all rollouts together.

    Args:
        config (`RolloutSFTConfig`):
            Gives `rollout_waves`.
        backend (`RolloutBackend`):
            Generates for training.
        deepspeed (`bool`):
            Whether DeepSpeed trains the model.
    """
    if config.rollout_waves == 1:
        return
    if deepspeed:
        raise ValueError(
            f"rollout_matching.rollout_waves is {config.rollout_waves}, but DeepSpeed trains the model: the weight of "
            "a window is known only after its first packs were trained, so the gradients are scaled at its end, and "
            "DeepSpeed hides them. Set rollout_waves: 1, or use FSDP2 or DDP."
        )
    if not isinstance(backend, StreamingBackend):
        logger.warning(
            "rollout_matching.rollout_waves is %d, but %s hands out all rollouts of a window together, so every window "
            "runs as with 1. Only vLLM servers (rollout_matching.vllm.mode: server) generate while packs are trained.",
            config.rollout_waves,
            getattr(backend, "name", type(backend).__name__),
        )


def warn_about_dropout(model: nn.Module) -> float:
    """
    Warns that gradients of a model with dropout agree only in expectation: masks are drawn for each row.

    Args:
        model (`nn.Module`):
            The unwrapped model.

    Returns:
        `float`: the largest dropout probability in the model's modules.
    """
    largest = 0.0
    for module in model.modules():
        drawn = module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0.0)
        if isinstance(drawn, int | float) and drawn > largest:
            largest = float(drawn)
    if largest:
        logger.warning(
            "the model has dropout up to %g: its masks are drawn for the rows of a forward, so another packing draws "
            "others and gradients agree in expectation only. Everything else stays exact; set dropout to 0 to have the "
            "same gradient in every schedule.",
            largest,
        )
    return largest


def warn_about_missing_end(segments: Sequence[Segment], end_id: int) -> bool:
    """
    Warns that no segment of the first window trains the end token, so that the model would not learn to stop.

    Args:
        segments (`Sequence[Segment]`):
            The segments of the window, on the CPU.
        end_id (`int`):
            The end that is to be trained.

    Returns:
        `bool`: whether it warned.
    """
    missing = bool(segments) and not any(
        (segment.targets[segment.indices[SUPERVISED]] == end_id).any() for segment in segments
    )
    if missing:
        logger.warning(
            "none of the %d segments of the first window trains the end token (id %d), so the model does not learn to "
            "stop. Rollout.response_ids come without it: a target builder appends find_end_tokens(tokenizer, "
            "config).trained (rollout_sft.targets) to the tokens and makes it the last target.",
            len(segments),
            end_id,
        )
    return missing


def reject_unreduced(model: nn.Module) -> None:
    """
    Raises `ValueError` after a backward under DDP in which a parameter had no part and DDP did not look for it.

    DDP then leaves gradients of other parameters unreduced, and the ranks would silently train different models.
    """
    if not isinstance(model, DistributedDataParallel) or model.find_unused_parameters:
        return
    unused = [name for name, p in model.module.named_parameters() if p.requires_grad and p.grad is None]
    if unused:
        raise ValueError(
            f"{len(unused)} trainable parameters had no part in the first window, such as {unused[0]}, and DDP was "
            "told not to look for them, so gradients are not reduced. Set training.ddp_find_unused_parameters: true, "
            "or freeze them."
        )


def reject_empty_data(dataset: Any, config: RolloutSFTConfig) -> None:
    """
    Raises `ValueError` when a training data set with a length gives no micro-batch. [`reject_empty_stream`] checks
    data without a length.

    Args:
        dataset (`Dataset`):
            The training data set, or None.
        config (`RolloutSFTConfig`):
            Gives the batch size, the ranks and `dataloader_drop_last`.
    """
    if dataset is None or not has_length(dataset):
        return
    samples, batch = len(dataset), config.per_device_train_batch_size
    if samples == 0:
        raise ValueError("the training data set has 0 samples, so there is nothing to train; check data.train.")
    assert isinstance(config.accelerator_config, AcceleratorConfig)
    ranks = 1 if config.accelerator_config.split_batches else config.world_size
    if config.dataloader_drop_last and samples < batch * ranks:
        raise ValueError(
            f"the training data set has {samples} samples, fewer than a micro-batch of {batch} on each of {ranks} "
            "ranks, and training.dataloader_drop_last would drop them all. Set it to false, or lower "
            "per_device_train_batch_size."
        )


def reject_empty_stream(global_step: int) -> None:
    """Raises `ValueError` when the data ended before the first step; later the end of the data ends an epoch."""
    if global_step == 0:
        raise ValueError(
            "the training data set gave no sample on any rank before step 1, so there is nothing to train; check "
            "data.train, or whether the stream was already read to its end."
        )


def reject_unsupervised_window(weight_sum: float, ranks: int, global_step: int) -> None:
    """Raises `ValueError`, because no position of the window has a loss weight on any of the `ranks`."""
    raise ValueError(
        f"step {global_step + 1}: no position of the window is supervised (loss weights sum to {weight_sum} over "
        f"{ranks} ranks), so there is nothing to train; check the target builder."
    )
