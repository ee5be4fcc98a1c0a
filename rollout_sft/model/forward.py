"""Prepares the keyword arguments of a model's forward, for training, the leak probe and the equivalence check."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from rollout_sft.model.attention import mark_packed
from rollout_sft.model.wrappers import base_model

Inputs = dict[str, Any]
"""Keyword arguments of a model's forward, or what the Trainer passes from one of its methods to the next."""


def prepare_forward(model: nn.Module, inputs: Mapping[str, Any]) -> Inputs:
    """
    Keeps the arguments that the model's forward takes, and marks packed inputs if the model runs varlen attention.

    Args:
        model (`nn.Module`):
            The model, wrapped or not.
        inputs (`Mapping[str, Any]`):
            The arguments that [`~rollout_sft.step.collate`] made for the forward.

    Returns:
        `dict`: the keyword arguments of `model(**...)`.
    """
    base = base_model(model)  # once: it looks at every module of the model
    names = _argument_names(base)
    taken = {name: value for name, value in inputs.items() if names is None or name in names}
    return mark_packed(taken, base)


def forward_names(model: nn.Module) -> set[str] | None:
    """
    Returns the names of the arguments that the model's forward takes, or None when it takes any.

    Args:
        model (`nn.Module`):
            The model, wrapped or not.

    Returns:
        `set[str]` or `None`: the names to keep when a batch is passed.
    """
    return _argument_names(base_model(model))


def _argument_names(base: nn.Module) -> set[str] | None:
    parameters = inspect.signature(base.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) and "logits_to_keep" in parameters:
        return None
    return set(parameters)
