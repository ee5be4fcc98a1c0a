"""Lets a model with installed GPU kernels compute on a CPU, by the PyTorch functions that transformers keeps for them.

flash-linear-attention, causal-conv1d and mamba-ssm run on GPUs only. transformers takes them wherever they can be
imported, so on a machine without a GPU a hybrid ends with "0 active drivers".
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from rollout_sft.model.layer_kinds import is_kernel, kernel_names, recurrent_layers
from rollout_sft.model.wrappers import base_model

logger = logging.getLogger(__name__)


def compute_on_cpu(model: nn.Module) -> list[str]:
    """
    Lets the recurrent layers of a model compute by PyTorch whatever lies on a CPU.

    Replaces functions in the module of the model's class, for every model of that class and until the process ends;
    tensors on a GPU get their kernels as before.

    Args:
        model (`nn.Module`):
            The unwrapped model.

    Returns:
        `list[str]`: the names of the functions that were or had been replaced; empty where no kernel is installed.
    """
    replaced = set()
    for layer in recurrent_layers(base_model(model)).values():
        space = vars(sys.modules[type(layer).__module__])
        for name in sorted(kernel_names(layer) & set(space)):
            function = space[name]
            if hasattr(function, "__wrapped__") and is_kernel(function, "cu_seqlens"):
                replaced.add(name)
                if not hasattr(function, "_computes_on_cpu"):
                    space[name] = _by_device(function)
    if replaced:
        logger.warning(
            "the installed kernels of %s need a GPU, and this run has none: %s compute in PyTorch instead, with the "
            "same result, but slower.",
            type(base_model(model)).__name__,
            ", ".join(sorted(replaced)),
        )
    return sorted(replaced)


def _by_device(kernel: Callable[..., Any]) -> Callable[..., Any]:
    plain = inspect.unwrap(kernel)
    known = set(inspect.signature(plain).parameters)

    @functools.wraps(kernel)
    def by_device(*args: Any, **kwargs: Any) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if not tensors or tensors[0].device.type != "cpu":
            return kernel(*args, **kwargs)
        if kwargs.get("cu_seqlens") is not None or kwargs.get("seq_idx") is not None:
            raise ValueError(
                f"{plain.__name__} cannot keep packed segments apart on a CPU. Train with RolloutSFTTrainer, or run "
                "the forward inside RecurrentLayers(model, device=...).active(), which gives it each segment alone."
            )
        return plain(*args, **{name: value for name, value in kwargs.items() if name in known})

    by_device._computes_on_cpu = True  # type: ignore[attr-defined]
    return by_device
