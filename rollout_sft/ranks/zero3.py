"""Runs and measures models whose weights DeepSpeed ZeRO-3 partitions.

Such a weight is empty outside of its module's forward, where hooks gather it from all ranks. So every rank must call
every module equally often. `Trainer.train` makes the engine that has the hooks; an evaluation before needs its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn


def is_partitioned(model: nn.Module) -> bool:
    """Returns whether ZeRO-3 holds the model's weights, so that they are empty outside of a forward."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def whole_shape(weight: Tensor) -> torch.Size:
    """Returns the shape of a weight, also of one that ZeRO-3 partitioned."""
    shape: torch.Size = getattr(weight, "ds_shape", weight.shape)
    return shape


@contextmanager
def gathered_in_forwards(model: nn.Module, config: dict[str, Any]) -> Iterator[None]:
    """
    Lets forwards gather the weights of a partitioned model that no engine trains yet; all ranks run the same forwards.

    Trainer's own `deepspeed_init(inference=True)` is not used: it removes `optimizer` from the configuration that
    training reads afterwards, and its engine stays.

    Args:
        model (`nn.Module`):
            The unwrapped model.
        config (`dict`):
            The configuration of DeepSpeed. It does not change.
    """
    import deepspeed

    ours = {key: deepcopy(value) for key, value in config.items() if key not in ("optimizer", "scheduler")}
    # Trainer fills in these values when it knows the number of steps; without them DeepSpeed takes its defaults.
    ours["zero_optimization"] = {key: value for key, value in ours["zero_optimization"].items() if value != "auto"}
    engine, *_ = deepspeed.initialize(model=model, config=ours)
    try:
        yield
    finally:
        engine.destroy()
