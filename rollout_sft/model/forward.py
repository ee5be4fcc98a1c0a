"""What a model's forward takes, whatever is wrapped around the model."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

Batch = dict[str, Any]
"""Keyword arguments of the model's forward, plus `targets` and `weights`, which the loss takes out again."""


def base_model(model: nn.Module) -> nn.Module:
    """The model itself, where torch.compile or PEFT has wrapped it."""
    plain: Any = getattr(model, "_orig_mod", model)
    return plain.get_base_model() if hasattr(plain, "get_base_model") else plain


def forward_names(model: nn.Module) -> set[str] | None:
    """
    What the model's forward takes by name, or None when it takes anything.

    Args:
        model (`nn.Module`):
            The unwrapped model; PEFT's wrapper is looked through.

    Returns:
        `set[str]` or `None`: the names to keep of a batch.
    """
    parameters = inspect.signature(base_model(model).forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) and "logits_to_keep" in parameters:
        return None
    return set(parameters)
