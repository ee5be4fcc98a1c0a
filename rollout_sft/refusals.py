"""Models that packing would train wrongly or differently without a word, met when the trainer is made."""

from __future__ import annotations

import logging

from torch import nn

logger = logging.getLogger(__name__)


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


def warn_about_dropout(model: nn.Module) -> float:
    """
    Says once that dropout makes gradients agree in expectation only: masks are drawn for each row, packed or not.

    Args:
        model (`nn.Module`):
            The unwrapped model.

    Returns:
        `float`: the largest dropout probability found in its modules.
    """
    largest = 0.0
    for module in model.modules():
        drawn = module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0.0)
        if isinstance(drawn, int | float) and drawn > largest:
            largest = float(drawn)
    if largest:
        logger.warning(
            "the model has dropout up to %g: its masks are drawn for the rows of a forward, so another packing draws "
            "others and gradients agree in expectation only. Everything else stays exact; set dropout to 0 to have the "
            "same gradient in every schedule.",
            largest,
        )
    return largest
