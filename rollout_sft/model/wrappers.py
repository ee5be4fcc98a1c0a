"""Finds the model inside its wrappers, and changes its mode for a block of code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import extract_model_from_parallel
from torch import nn


def base_model(model: nn.Module) -> nn.Module:
    """Returns the model without the wrappers of DDP, torch.compile and PEFT."""
    plain: Any = extract_model_from_parallel(model, keep_torch_compile=False)
    plain = getattr(plain, "_orig_mod", plain)
    return plain.get_base_model() if hasattr(plain, "get_base_model") else plain


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts the model into evaluation mode, and restores the mode of every module afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training
