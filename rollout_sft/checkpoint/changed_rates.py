"""Puts changed settings back into an optimizer and a scheduler after their saved states were loaded."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch

from rollout_sft.checkpoint.settings import ChangedSettingsError

_IN_GROUPS = {
    "training.learning_rate": ("initial_lr",),
    "training.weight_decay": ("weight_decay",),
    "training.adam_beta1": ("betas",),
    "training.adam_beta2": ("betas",),
    "training.adam_epsilon": ("eps",),
}
_END = {"training.max_steps", "training.num_train_epochs"}
_SCHEDULE = {"training.lr_scheduler_type", "training.lr_scheduler_kwargs", "training.warmup_steps"}


def remember(optimizer: Any) -> list[dict[str, Any]]:
    """
    Copies the settings of an optimizer before its state is loaded.

    Args:
        optimizer (`Optimizer`):
            The optimizer of the configuration; its scheduler has put `initial_lr` into the groups.

    Returns:
        `list[dict]`: one per parameter group.
    """
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def put_back(changed: Set[str], fresh: list[dict[str, Any]], optimizer: Any, scheduler: Any) -> None:
    """
    Gives the changed settings to an optimizer and a scheduler whose states were loaded.

    Args:
        changed (`Set[str]`):
            Keys of the settings that differ from the checkpoint's; only those of optimizer and scheduler are used.
        fresh (`list[dict]`):
            The result of [`remember`].
        optimizer, scheduler:
            They hold the checkpoint's state.

    Raises:
        [`ChangedSettingsError`]: a setting cannot be changed in this optimizer or scheduler.
    """
    names = {name for key in changed & _IN_GROUPS.keys() for name in _IN_GROUPS[key]}
    rates = "initial_lr" in names or changed & _SCHEDULE
    if rates and not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        raise ChangedSettingsError(
            f"{', '.join(sorted(changed))} cannot change in a resumed run: {type(scheduler).__name__} computes the "
            "learning rate from what it has seen. Start a new run from the checkpoint's weights."
        )
    for group, own in zip(optimizer.param_groups, fresh, strict=True):
        for name in names:
            if name not in own:
                raise ChangedSettingsError(
                    f"{', '.join(sorted(changed))} cannot change in a resumed run: {type(optimizer).__name__} has no "
                    f"{name} in its parameter groups."
                )
            group[name] = own[name]
    if rates or (changed & _END and isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)):
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        factors = [rate(scheduler.last_epoch) for rate in scheduler.lr_lambdas]
        scheduler._last_lr = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
        for group, rate in zip(optimizer.param_groups, scheduler._last_lr, strict=True):
            group["lr"] = rate
