"""Compares the settings of a resumed run with those of the run that saved its checkpoint."""

from __future__ import annotations

import difflib
import json
import logging
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from rollout_sft.checkpoint.data_fingerprint import STREAM
from rollout_sft.config.arguments import RolloutSFTConfig

logger = logging.getLogger(__name__)

_HOW_LONG = ("max_steps", "num_train_epochs")
_FREE = {
    *_HOW_LONG,
    # say where the run takes place, and what it writes, logs and measures
    *("output_dir", "overwrite_output_dir", "use_cpu", "local_rank", "ddp_timeout", "debug", "callbacks"),
    *("resume_from_checkpoint", "resume_with_changes", "restore_callback_states_from_checkpoint"),
    *("do_train", "do_eval", "do_predict", "disable_tqdm", "skip_memory_metrics", "run_name", "project", "report_to"),
    *("prediction_loss_only", "include_for_metrics", "batch_eval_metrics", "per_device_eval_batch_size", "label_names"),
    *("log_level", "log_level_replica", "log_on_each_node", "include_num_input_tokens_seen", "push_to_hub"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "enable_jit_checkpoint"),
    *("packing_min_fill_ratio", "check_isolation", "validate_schedule"),
    # compute and read the same numbers, to the last bit
    *("activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing"),
    *("gradient_checkpointing_kwargs", "torch_empty_cache_steps", "average_tokens_across_devices"),
    "ddp_find_unused_parameters",  # set for an image model when its trainer is made
    # decide what happens where the run would have ended, so not up to the checkpoint
    *("packing_drop_last", "on_infeasible", "on_non_finite"),
}
_FREE_PREFIXES = ("logging_", "eval_", "save_", "hub_", "trackio_", "dataloader_num", "dataloader_p", "dataloader_m")
_FREE_OF_VLLM = {
    *("gpu_memory_utilization", "sleep", "base_url", "timeout", "retries", "concurrency", "weight_transfer"),
    "weights_dir",
}
_OF_EVALUATION = ("eval_strategy", "eval_steps", "eval_decoding", "eval_delay", "metric_for_best_model")
"""Decide the learning rate where the scheduler follows the scores."""
_CANNOT = {
    "model": "the saved weights do not fit another model; start a new run from model.model_name_or_path",
    "training.optim": "the saved state is that of the other optimizer; start a new run from the checkpoint's weights",
    "training.optim_args": "the saved state holds the optimizer's arguments; start a new run from the checkpoint's "
    "weights",
    "training.optim_target_modules": "the saved state is that of other parameters",
    "optimizer": "the saved state is that of the other optimizer",
    "optimizer.groups": "the saved state holds the optimizer's arguments",
    "optimizer.scheduler": "the saved state is that of the other scheduler",
}
_WINDOW = ("ranks", "training.gradient_accumulation_steps", "training.per_device_train_batch_size")
_PACKAGES = ("packsched", "torch", "transformers", "accelerate", "peft", "tokenizers", "numpy")
_NAMED = 8
"""The most changes that a message tells in full."""


class ChangedSettingsError(ValueError):
    """Raised when a checkpoint was saved by a run with different settings."""


def trained_with(config: RolloutSFTConfig, parts: Mapping[str, Any], data: Mapping[str, str]) -> dict[str, Any]:
    """
    Collects what this run is trained with.

    Args:
        config (`RolloutSFTConfig`):
            Its arguments; all count but those that this file names.
        parts (`Mapping[str, Any]`):
            The result of [`~rollout_sft.checkpoint.described_parts.describe_parts`].
        data (`Mapping[str, str]`):
            The result of [`~rollout_sft.checkpoint.data_fingerprint.fingerprint`].

    Returns:
        `dict`: `settings` (key to value), `how_long` and `versions`, as JSON.
    """
    settings: dict[str, Any] = {"ranks": config.world_size, "mixed_precision": config.mixed_precision, **parts, **data}
    for spec in fields(config):
        if _counts(spec.name, config, data):
            section = spec.metadata.get("section", "training")
            key = spec.name if section == "top" else f"{section}.{spec.name}"
            settings[key] = _value(spec.name, getattr(config, spec.name))
    versions = {
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if config.device.type == "cuda" else config.device.type,
        **{name: _version(name) for name in _PACKAGES},
    }
    plain: dict[str, Any] = json.loads(
        json.dumps({"settings": settings, "how_long": how_long(config), "versions": versions}, default=_plain)
    )
    return plain


def _counts(name: str, config: RolloutSFTConfig, data: Mapping[str, str]) -> bool:
    """Returns whether a field can change the weights; a field that nobody has thought of can."""
    if name == "dataloader_num_workers" and data.get("data.train") == STREAM:  # workers decide a stream's order
        return True
    if name in _OF_EVALUATION and config.lr_scheduler_type == "reduce_lr_on_plateau":
        return True
    return name not in _FREE and not name.startswith(_FREE_PREFIXES)


def _value(name: str, value: Any) -> Any:
    """Returns what counts of a field's value: the content of a file, not its path; of vLLM what shapes the answers."""
    if name == "vllm":
        return {key: part for key, part in asdict(value).items() if key not in _FREE_OF_VLLM}
    if name == "deepspeed" and isinstance(value, str) and Path(value).is_file():
        return json.loads(Path(value).read_text(encoding="utf-8"))
    return value


def check_changes(
    checkpoint: str, saved: Mapping[str, Any], now: Mapping[str, Any], allowed: Iterable[str]
) -> frozenset[str]:
    """
    Compares a resumed run with the run that saved its checkpoint.

    Args:
        checkpoint (`str`):
            The path of the checkpoint, for messages.
        saved, now (`Mapping[str, Any]`):
            Results of [`trained_with`].
        allowed (`Iterable[str]`):
            `training.resume_with_changes`.

    Returns:
        `frozenset[str]`: the changed keys, all of them allowed; `training.max_steps` and `num_train_epochs` may be
        among them.

    Raises:
        [`ChangedSettingsError`]: a setting has changed that is not in `allowed`, or that cannot take effect.
        `ValueError`: `allowed` holds a name that is not a setting.
    """
    before, after = saved["settings"], now["settings"]
    for key in allowed:
        if key not in before.keys() | after.keys():
            near = difflib.get_close_matches(key, after, n=1, cutoff=0.3)
            raise ValueError(
                f"training.resume_with_changes holds {key!r}, which is no setting that a resume compares; the nearest "
                f"is {near[0] if near else 'training.learning_rate'}."
            )
    moved = {key for part in ("how_long", "versions") for key in _changed(saved[part], now[part])}
    # Another version may know other fields.
    changed = _changed(before, after, all_keys=saved["versions"] == now["versions"])
    for key in sorted(changed & set(_CANNOT)):
        raise ChangedSettingsError(
            f"{key} cannot change in a resumed run: {_CANNOT[key]}. {checkpoint} was saved by a run with other "
            f"settings: {_tell(changed, before, after, first=key)}."
        )
    if refused := changed - set(allowed):
        raise ChangedSettingsError(
            f"{checkpoint} was saved by a run with other settings: {_tell(refused, before, after)}. Set them back, or "
            f"allow the change with training.resume_with_changes: [{', '.join(sorted(refused))}]."
        )
    for key in sorted(changed):
        where = " The data continue at the sample that this many steps of the new size reach." if key in _WINDOW else ""
        logger.warning("resumed with %s: %s (was %s).%s", key, _short(after.get(key)), _short(before.get(key)), where)
    was, is_now = ({**state["how_long"], **state["versions"]} for state in (saved, now))
    for key in sorted(moved):
        logger.warning("%s was %s when %s was saved and is %s.", key, was[key], checkpoint, is_now[key])
    return changed | moved


def how_long(config: RolloutSFTConfig) -> dict[str, float]:
    """Returns the settings that say when a run ends, which a resumed run may change."""
    return {f"training.{name}": getattr(config, name) for name in _HOW_LONG}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from its sources
        return "unknown"


def _changed(before: Mapping[str, Any], after: Mapping[str, Any], *, all_keys: bool = False) -> frozenset[str]:
    """Returns the keys whose values differ; with `all_keys` those as well that only one of the two has."""
    keys = before.keys() | after.keys() if all_keys else before.keys() & after.keys()
    return frozenset(key for key in keys if before.get(key) != after.get(key))


def _tell(changed: Iterable[str], before: Mapping[str, Any], after: Mapping[str, Any], first: str = "") -> str:
    keys = sorted(changed, key=lambda key: (key != first, key))
    told = [f"{key} was {_short(before.get(key))} and is {_short(after.get(key))}" for key in keys[:_NAMED]]
    return "; ".join([*told, *([f"and {len(keys) - _NAMED} more"] if len(keys) > _NAMED else [])])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)
