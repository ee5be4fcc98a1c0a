"""Compares the settings of a resumed run with those of the run that saved its checkpoint."""

from __future__ import annotations

import difflib
import json
import logging
import platform
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from importlib import metadata
from typing import Any

from torch import nn

from rollout_sft.checkpoint.manifest import DamagedCheckpointError, last_finished_checkpoint, read_finished
from rollout_sft.config.arguments import RolloutSFTConfig

logger = logging.getLogger(__name__)

_HOW_LONG = ("max_steps", "num_train_epochs")
_CHANGE_NOTHING = {
    *_HOW_LONG,
    # say where the run takes place, and what it writes and measures
    *("output_dir", "use_cpu", "local_rank", "resume_from_checkpoint", "resume_with_changes", "debug", "ddp_timeout"),
    *("ddp_backend", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_find_unused_parameters", "ddp_static_graph"),
    *("do_train", "do_eval", "do_predict", "disable_tqdm", "skip_memory_metrics", "run_name", "project", "report_to"),
    *("prediction_loss_only", "include_for_metrics", "batch_eval_metrics", "per_device_eval_batch_size", "log_level"),
    *("log_level_replica", "log_on_each_node", "load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    *("include_num_input_tokens_seen", "push_to_hub", "enable_jit_checkpoint", "full_determinism", "label_names"),
    *("restore_callback_states_from_checkpoint", "average_tokens_across_devices", "torch_empty_cache_steps"),
    *("callbacks", "overwrite_output_dir"),
    # say how the same numbers are computed and read
    *("activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing"),
    *("gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend", "torch_compile_mode"),
    # decide nothing about the weights
    *("packing_min_fill_ratio", "packing_drop_last", "idle_micro_steps", "on_infeasible", "check_isolation"),
    *("validate_schedule", "on_non_finite", "rollout_batch_size", "vllm"),
}
_CHANGE_NOTHING_PREFIXES = (
    "logging_",
    "eval_",
    "save_",
    "hub_",
    "trackio_",
    "dataloader_num",
    "dataloader_p",
    "dataloader_m",
)
_CANNOT = {
    "model": "the saved weights do not fit another model; start a new run from model.model_name_or_path",
    "training.optim": "the saved state is that of the other optimizer; start a new run from the checkpoint's weights",
    "training.optim_target_modules": "the saved state is that of other parameters",
}
_WINDOW = ("ranks", "training.gradient_accumulation_steps", "training.per_device_train_batch_size")


class ChangedSettingsError(ValueError):
    """Raised when a checkpoint was saved by a run with different settings."""


def trained_with(config: RolloutSFTConfig, model: nn.Module, data: Mapping[str, str]) -> dict[str, Any]:
    """
    Collects what this run is trained with.

    Args:
        config (`RolloutSFTConfig`):
            Its arguments; those that do not change the weights are left out.
        model (`nn.Module`):
            The names, shapes and types of its parameters are compared, not its weights.
        data (`Mapping[str, str]`):
            The result of [`~rollout_sft.checkpoint.data_fingerprint.fingerprint`].

    Returns:
        `dict`: `settings` (key to value), `how_long` and `versions`, as JSON.
    """
    settings: dict[str, Any] = {"ranks": config.world_size, "model": _shape(model), **data}
    for spec in fields(config):
        if spec.name not in _CHANGE_NOTHING and not spec.name.startswith(_CHANGE_NOTHING_PREFIXES):
            section = spec.metadata.get("section", "training")
            key = spec.name if section == "top" else f"{section}.{spec.name}"
            settings[key] = getattr(config, spec.name)
    packages = ("packsched", "torch", "transformers", "accelerate")
    versions = {"python": platform.python_version(), **{name: _version(name) for name in packages}}
    plain: dict[str, Any] = json.loads(
        json.dumps({"settings": settings, "how_long": _how_long(config), "versions": versions}, default=_plain)
    )
    return plain


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
        if key not in after:
            near = difflib.get_close_matches(key, after, n=1, cutoff=0.3)
            raise ValueError(
                f"training.resume_with_changes holds {key!r}, which is no setting that a resume compares; the nearest "
                f"is {near[0] if near else 'training.learning_rate'}."
            )
    changed = _changed(before, after)
    refused = sorted(changed - set(allowed))
    if refused:
        what = "; ".join(f"{key} was {_short(before[key])} and is {_short(after[key])}" for key in refused)
        raise ChangedSettingsError(
            f"{checkpoint} was saved by a run with other settings: {what}. Set them back, or allow the change with "
            f"training.resume_with_changes: [{', '.join(refused)}]."
        )
    for key in sorted(changed & set(_CANNOT)):
        raise ChangedSettingsError(f"{key} cannot change in a resumed run: {_CANNOT[key]}.")
    for key in sorted(changed):
        where = " The data continue at the sample that this many steps of the new size reach." if key in _WINDOW else ""
        logger.warning("resumed with %s: %s (was %s).%s", key, _short(after[key]), _short(before[key]), where)
    moved = {key for part in ("how_long", "versions") for key in _changed(saved[part], now[part])}
    was, is_now = ({**state["how_long"], **state["versions"]} for state in (saved, now))
    for key in sorted(moved):
        logger.warning("%s was %s when %s was saved and is %s.", key, was[key], checkpoint, is_now[key])
    return changed | moved


def end_was_moved(config: RolloutSFTConfig) -> bool:
    """
    Returns whether a finished run is to continue.

    Args:
        config (`RolloutSFTConfig`):
            Gives `output_dir`, `max_steps` and `num_train_epochs`.

    Returns:
        `bool`: True when its last checkpoint was saved with a different end.
    """
    last = last_finished_checkpoint(str(config.output_dir))
    try:
        saved = read_finished(last, contents=False) if last else None
    except DamagedCheckpointError:  # a finished run needs no checkpoint
        return False
    return saved is not None and saved["how_long"] != _how_long(config)


def _how_long(config: RolloutSFTConfig) -> dict[str, float]:
    return {f"training.{name}": getattr(config, name) for name in _HOW_LONG}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from its sources
        return "unknown"


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> frozenset[str]:
    """Returns the keys whose values differ; ignores keys that only one of the two versions knows."""
    return frozenset(key for key in before if key in after and before[key] != after[key])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _shape(model: nn.Module) -> str:
    parameters = [f"{name} {tuple(p.shape)} {p.dtype} {p.requires_grad}" for name, p in model.named_parameters()]
    size = sum(p.numel() for p in model.parameters())
    return f"{size} parameters, {zlib.crc32(chr(10).join(parameters).encode()):08x}"


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)
