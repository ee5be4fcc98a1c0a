"""Checks the fields that `RolloutSFTConfig` inherits from `TrainingArguments`; names a bad value by its key.

The checks run before `TrainingArguments` converts anything, because its messages name no key and it fills in values
that were not given.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_pt_utils import AcceleratorConfig

from rollout_sft.config.keys import Range, enum_values
from rollout_sft.config.shorten import cut, shorten

_CHECKED_CHOICES = ("train_sampling_strategy", "log_level", "log_level_replica", "dataloader_multiprocessing_context")
"""Text fields that take only the listed choices; transformers accepts any text and falls back silently."""

_BETA = Range(takes="a number from 0 to below 1", at_least=0, less_than=1)
_RATE = Range(takes="0 or more", at_least=0)
_STEPS = Range(takes="a number of steps, or a share of all steps below 1; more than 0", more_than=0)
RANGES = {
    "gradient_accumulation_steps": Range(takes="1 micro-batch or more", at_least=1),
    "per_device_train_batch_size": Range(takes="1 sample or more", at_least=1),
    "per_device_eval_batch_size": Range(takes="1 sample or more", at_least=1),
    "seed": Range(takes="0 to 4294967295", at_least=0, at_most=2**32 - 1),
    "data_seed": Range(takes="0 to 4294967295, or nothing", at_least=0, at_most=2**32 - 1),
    "num_train_epochs": Range(takes="a number of epochs, 0 or more", at_least=0),
    "max_steps": Range(takes="1 step or more, or -1 to train num_train_epochs", at_least=-1),
    "learning_rate": _RATE,
    "weight_decay": _RATE,
    "warmup_steps": Range(takes="a number of steps, or a share of all steps below 1; 0 or more", at_least=0),
    "adam_beta1": _BETA,
    "adam_beta2": _BETA,
    # With 0, a weight that has had no gradient becomes 0 / 0.
    "adam_epsilon": Range(takes="more than 0", more_than=0),
    "max_grad_norm": Range(takes="0 or more; 0 clips nothing", at_least=0),
    "logging_steps": _STEPS,
    "save_steps": _STEPS,
    "eval_steps": _STEPS,
    "eval_delay": Range(takes="a number of steps or epochs, 0 or more", at_least=0),
    "save_total_limit": Range(takes="1 checkpoint or more, or nothing to keep all", at_least=1),
    "eval_accumulation_steps": Range(takes="1 step or more, or nothing", at_least=1),
    "torch_empty_cache_steps": Range(takes="1 step or more, or nothing", at_least=1),
    "dataloader_num_workers": Range(takes="0 processes or more", at_least=0),
    "dataloader_prefetch_factor": Range(takes="1 batch or more, or nothing", at_least=1),
    "ddp_bucket_cap_mb": Range(takes="1 MiB or more, or nothing", at_least=1),
    "ddp_timeout": Range(takes="1 second or more", at_least=1),
    "local_rank": Range(takes="the rank of this process, or -1", at_least=-1),
}
"""Ranges of the numbers of `TrainingArguments`, which would reach the optimizer, the loader or torch unchecked."""

_REFUSED = {
    "auto_find_batch_size": "it retries a window with other micro-batches; set per_device_train_batch_size",
    "label_smoothing_factor": "the loss is computed from per-token targets and weights, which do not smooth",
    "neftune_noise_alpha": (
        "its noise depends on the length of the packed row, so the gradient would depend on the packing"
    ),
    "use_liger_kernel": "its fused loss does not know per-token weights",
    "remove_unused_columns": (
        "no column of a sample is an argument of the model's forward, so all of them would be removed, those that the "
        "target builder reads too; leave it out"
    ),
    "bf16_full_eval": (
        "evaluation generates with the model as it is trained, so it would have no effect; set bf16 or model.dtype"
    ),
    "fp16_full_eval": (
        "evaluation generates with the model as it is trained, so it would have no effect; set fp16 or model.dtype"
    ),
}


_CHECKPOINTING = ("use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop")
"""What `torch.utils.checkpoint.checkpoint` takes."""


def check_inherited(arguments: TrainingArguments) -> None:
    """
    Checks the values of inherited fields, before `TrainingArguments.__post_init__`.

    Args:
        arguments (`TrainingArguments`):
            The arguments, with the values as they were given.

    Raises:
        `ValueError`: a value that transformers would reject without its key or ignore silently, or a field that is
            refused here; the message names the key, the value, and what the key takes or why it is refused.
    """
    for name, choices in _choices().items():
        value = getattr(arguments, name)
        for part in value.split() if name == "debug" and isinstance(value, str) else [value]:
            if isinstance(part, str) and part not in choices:
                raise ValueError(f"training.{name} is {shorten(part)}; it takes {' | '.join(choices)}.")
    _check_numbers(arguments)
    _check_files(arguments)
    _check_mappings(arguments)
    _check_reporters(arguments.report_to)
    if arguments.train_sampling_strategy == "group_by_length":
        raise ValueError(
            "training.train_sampling_strategy is group_by_length, which is refused: the length of a segment is known "
            "only after its rollout. Set it to random or sequential; packs hold segments of any lengths."
        )
    optim = getattr(arguments.optim, "value", arguments.optim)
    if optim in ("lomo", "adalomo") or str(optim).endswith("_layerwise"):
        raise ValueError(
            f"training.optim is {optim}, which is refused: it changes the weights inside each backward, so the packs "
            "of a window would be trained with different weights. Choose one that steps once a window, such as "
            "adamw_torch or adamw_8bit."
        )
    for name, reason in _REFUSED.items():
        value = getattr(arguments, name)
        if value:
            raise ValueError(f"training.{name} is {shorten(value)}, which is refused: {reason}.")
    _check_accelerator(arguments.accelerator_config)
    _check_best_metric(arguments)


def _check_numbers(arguments: TrainingArguments) -> None:
    """Checks numbers; `TrainingArguments` accepts infinite rates, and divides by counts of 0 much later."""
    for spec in fields(TrainingArguments):
        value = getattr(arguments, spec.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"training.{spec.name} is {value}; it takes a finite number.")
    epochs, steps = arguments.num_train_epochs, arguments.max_steps
    if _is_number(epochs) and _is_number(steps) and epochs <= 0 and steps <= 0:
        raise ValueError(
            f"training.num_train_epochs is {epochs} and max_steps {steps}, so nothing would be trained; give "
            "num_train_epochs more than 0, or max_steps 1 or more."
        )
    for name, bounds in RANGES.items():
        value = getattr(arguments, name)
        empty = name == "max_steps" and value == 0  # transformers takes it as -1
        kind = value is None or (_is_number(value) and (isinstance(value, int) or float in _kinds(name)))
        if empty or not kind or not bounds.holds(value):
            raise ValueError(f"training.{name} is {shorten(value)}; it takes {bounds.takes}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kinds(name: str) -> set[Any]:
    hint = _hints()[name]
    return {hint, *typing.get_args(hint)}


@cache
def _hints() -> dict[str, Any]:
    return typing.get_type_hints(TrainingArguments)


def _check_files(arguments: TrainingArguments) -> None:
    """Checks that the files exist which `TrainingArguments` opens, and that the results do not go to no folder."""
    if isinstance(arguments.output_dir, str) and not arguments.output_dir.strip():
        raise ValueError("training.output_dir is empty; it takes the path of a folder.")
    for name in ("deepspeed", "fsdp_config", "accelerator_config"):
        value = getattr(arguments, name)
        if isinstance(value, str) and not value.startswith("{") and not _is_file(value):
            raise ValueError(
                f"training.{name} is {shorten(value)}, but there is no such file; it takes a mapping or the path of a "
                "JSON file."
            )


def _check_mappings(arguments: TrainingArguments) -> None:
    """Checks the keywords that reach the scheduler and the checkpointing of activations at the first step."""
    for name in ("lr_scheduler_kwargs", "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        value = getattr(arguments, name, None)
        if isinstance(value, str) and not value.startswith("{"):
            raise ValueError(f"training.{name} is {shorten(value)}; it takes a mapping.")
        if isinstance(value, dict) and name != "lr_scheduler_kwargs":
            for key in value:
                if key not in _CHECKPOINTING:
                    known = ", ".join(_CHECKPOINTING)
                    raise ValueError(f"unknown key training.{name}.{cut(str(key))}: it takes {known}.")


def _check_reporters(given: Any) -> None:
    """Checks the names of `report_to`, which the trainer looks up after the model is loaded."""
    known = ("all", "none", *INTEGRATION_TO_CALLBACK)
    for name in [given] if isinstance(given, str) else given or ():
        if name not in known:
            raise ValueError(f"training.report_to is {shorten(given)}; it takes a list of {' | '.join(known)}.")


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # too long for a path, or with a zero byte
        return False


def _check_accelerator(given: Any) -> None:
    if isinstance(given, dict):
        known = [spec.name for spec in fields(AcceleratorConfig)]
        for key in given:
            if key not in known:
                raise ValueError(
                    f"unknown key training.accelerator_config.{cut(str(key))}: it takes {', '.join(known)}."
                )


def init_inherited(init: Callable[[], None], given: TrainingArguments) -> None:
    """
    Runs `TrainingArguments.__post_init__`.

    Args:
        init (`Callable[[], None]`):
            The method.
        given (`TrainingArguments`):
            Its arguments, for messages.

    Raises:
        `ValueError`: transformers refuses the arguments; the message says why.
        `ImportError`: a setting needs a package that is not installed.
    """
    try:
        init()
    except ImportError as error:
        if given.deepspeed and find_spec("deepspeed") is None:
            raise ImportError(
                "training.deepspeed is given, but deepspeed is not installed: pip install deepspeed, or remove the key."
            ) from error
        raise ImportError(
            f"training: a setting needs a package that is not installed: {cut(str(error), 600)}"
        ) from error
    except Exception as error:
        raise ValueError(
            f"training: transformers refuses these arguments: {type(error).__name__}: {cut(str(error), 600)}"
        ) from error


def check_dispatch(value: bool | None) -> None:
    """Raises `ValueError` when rank 0 is to dispatch its batches to all ranks."""
    if value:
        raise ValueError(
            f"training.accelerator_config.dispatch_batches is {value}, which is refused: rank 0 would slice the "
            "batches of all ranks as tensors, but raw samples are not tensors. Leave it out; every rank reads its own "
            "share."
        )


def _check_best_metric(arguments: TrainingArguments) -> None:
    """Requires a metric where one is needed: `TrainingArguments` defaults to `loss`, which evaluation lacks."""
    if arguments.metric_for_best_model is not None:
        return
    needed_by = {
        "load_best_model_at_end": arguments.load_best_model_at_end,
        "save_strategy": arguments.save_strategy == "best",
        "lr_scheduler_type": arguments.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"),
    }
    for name, needs in needed_by.items():
        if needs:
            value = getattr(arguments, name)
            raise ValueError(
                f"training.{name} is {getattr(value, 'value', value)}, but training.metric_for_best_model is not "
                "given; it takes a metric that evaluation reports, and there is no eval_loss. Set "
                "metric_for_best_model: eval_rollout/f1 (or another score of the target builder)."
            )


def _choices() -> dict[str, tuple[str, ...]]:
    """Returns, for each field that takes fixed texts, these texts."""
    found = {name: values for name, hint in _hints().items() if (values := tuple(enum_values(hint)))}
    metadata = {spec.name: spec.metadata for spec in fields(TrainingArguments)}
    for name in _CHECKED_CHOICES:
        if "choices" in metadata.get(name, {}):
            found[name] = tuple(metadata[name]["choices"])
    return found
