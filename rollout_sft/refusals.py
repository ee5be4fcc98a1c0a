"""Models that packing would train wrongly without a word, refused when the trainer is made."""

from __future__ import annotations

from torch import nn


def reject_unknown_positions(model: nn.Module, names: set[str] | None) -> None:
    """Raises `ValueError` when the forward, which takes `names` (None: anything), takes no `position_ids`."""
    if names is not None and "position_ids" not in names:
        raise ValueError(
            f"{type(model).__name__}.forward takes no position_ids, so it cannot tell packed segments apart: they "
            "would attend to each other silently. Use a model that does, or set training.packing: false."
        )


def reject_own_loss(model: nn.Module) -> None:
    """Raises `ValueError` when the model would add a loss of its own."""
    if getattr(getattr(model, "config", None), "output_router_logits", False):
        raise ValueError(
            "model.config.output_router_logits is true: the router's auxiliary loss is a mean over the tokens of one "
            "forward, so it would depend on the packing, and this trainer does not add it. Set it to false."
        )
