"""Prepares models whose weights bitsandbytes quantized, so that packs are trained as their segments alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from rollout_sft.config.quantization import NO_OUTLIERS


def is_quantized(model: nn.Module) -> bool:
    """Returns whether a layer of the model holds quantized weights."""
    return any(True for _ in _layers(model))


def prepare_quantized(model: nn.Module) -> None:
    """
    Turns off what would change the weights or join packed segments; does nothing for a model that is not quantized.

    On a CPU with AVX512-BF16 a `Linear4bit` of bitsandbytes 0.50 rewrites its weights for inference at the first
    forward in evaluation mode, such as a leak probe or a rollout, and its backward reads them as before: every later
    gradient is wrong by its whole size. Without the rewriting all forwards compute alike.

    Args:
        model (`nn.Module`):
            The model, with its adapter, before its first forward.

    Raises:
        `ValueError`: a layer has rewritten its weights already, or 8-bit layers look for outliers in whole rows.
    """
    for name, layer in _layers(model):
        layer.support_avx512bf16_for_cpu = False
        quantized = getattr(layer.weight, "quant_state", None)
        if getattr(quantized, "packing_format_for_cpu", False):
            raise ValueError(
                f"{name} was rewritten for inference by a forward without gradients, so its gradients would be wrong "
                "(bitsandbytes on a CPU with AVX512-BF16). Load the model again and give it to the trainer, or to "
                "check_isolation, before its first forward."
            )
        threshold = getattr(getattr(layer, "state", None), "threshold", 0.0)
        if threshold:
            raise ValueError(f"{name} has llm_int8_threshold {threshold:g}: {NO_OUTLIERS}")


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yields bitsandbytes' layers, which nobody has made who has not imported it."""
    for name, module in model.named_modules():
        if type(module).__module__.startswith("bitsandbytes.nn") and hasattr(module, "weight"):
            yield name, module
