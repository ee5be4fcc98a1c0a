"""Yields the live model's weights, tensor by tensor, under the names of a checkpoint of the plain model.

LoRA and similar         merged layer by layer into copies; the trained tensors do not change by a bit
FSDP2, ZeRO-3            gathered parameter by parameter, so no rank ever holds more than one layer in full
renamed layouts          converted to the checkpoint's names and shapes (a mixture's experts, for instance)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from rollout_sft.model.wrappers import base_model

_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
"""Names that torch.compile and activation checkpointing put between a module and its child."""


class StaleRolloutError(RuntimeError):
    """Raised when an engine would have generated with weights that differ from the live ones."""


class LiveWeights:
    """
    Gives the weights for rollouts, and counts their changes.

    Args:
        model (`Callable[[], nn.Module]`):
            Returns the unwrapped live model; called at each use, since trainers wrap it late.

    Attributes:
        version (`int`):
            Grows with every change; an engine whose copy has another version must not generate.
    """

    def __init__(self, model: Callable[[], nn.Module]):
        self._model = model
        self.version = 0

    def changed(self) -> None:
        """Marks the weights as changed: after an optimizer step, or after loading."""
        self.version += 1

    def require(self, version: int | None) -> None:
        """Raises [`StaleRolloutError`] when an engine's copy of the weights, of `version`, is not that of now."""
        if version != self.version:
            raise StaleRolloutError(
                f"the engine has weights of version {version}, but the live ones are of version {self.version}. "
                "Call sync() on every rank before generate()."
            )

    @property
    def model(self) -> PreTrainedModel:
        """Returns the plain model, without an adapter's wrapper."""
        plain: Any = base_model(self._model())
        return plain

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """
        Yields every weight once, in the order of the modules; tied weights appear under their first name.

        With sharded models this is a collective: all ranks must run it to its end.

        Returns:
            `Iterator[tuple[str, Tensor]]`: checkpoint names and whole tensors, on the model's device. A tensor may
            share memory with the model; copy it to keep it.
        """
        model, layer = self.model, ""
        group: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, tensor in _walk(model, "", set()):
                # A conversion needs all names and shapes of one layer, and never those of another layer.
                if _layer(name) != layer:
                    yield from revert_weight_conversion(model, group).items()
                    layer, group = _layer(name), {}
                group[name] = tensor
            yield from revert_weight_conversion(model, group).items()


def _layer(name: str) -> str:
    """Returns `model.layers.3` for a weight of that layer: the name up to its first number, or the whole name."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: i + 1])
    return name


def _walk(module: nn.Module, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    if type(module).__name__ == "FullyShardedDataParallel":
        raise ValueError(
            "the model is wrapped by FSDP version 1, whose flat parameters have no names to send to vLLM. "
            "Set fsdp_version: 2 in the accelerate configuration."
        )
    if hasattr(module, "merge") and hasattr(module, "get_base_layer"):
        for name, tensor in _merged(module).items():
            yield f"{prefix}{name}", tensor
        return
    if hasattr(module, "token_adapter"):
        yield from _walk(module.token_adapter, prefix, seen)  # type: ignore[arg-type]
        return
    if hasattr(module, "modules_to_save") and hasattr(module, "original_module"):
        replaced: Any = module.modules_to_save
        yield from _walk(replaced[module.active_adapter], prefix, seen)
        return
    for name, tensor in _own(module):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield f"{prefix}{name}", _whole(tensor)
    for name, child in module.named_children():
        yield from _walk(child, prefix if name in _WRAPPERS else f"{prefix}{name}.", seen)


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the module's own parameters and the buffers that a checkpoint holds."""
    yield from module.named_parameters(recurse=False)
    for name, buffer in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            yield name, buffer


def _merged(layer: Any) -> dict[str, Tensor]:
    """Returns copies of an adapted layer's base weights with the adapters added.

    Merging in place and subtracting again would leave rounding errors in the frozen weights at every step.
    """
    with _gathered(list(layer.parameters())):
        base: nn.Module = layer.get_base_layer()
        if layer.merged or layer.disable_adapters:
            return {name: _whole(tensor).clone() for name, tensor in _own(base)}
        before = {name: tensor.detach().clone() for name, tensor in _own(base)}
        layer.merge()
        try:
            return {name: _whole(tensor).clone() for name, tensor in _own(base)}
        finally:
            layer.unmerge()
            for name, tensor in _own(base):
                tensor.data.copy_(before[name])


def _whole(tensor: Tensor) -> Tensor:
    """Returns the whole tensor of a shard, detached."""
    if isinstance(tensor, DTensor):
        whole: Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]
        return whole
    if hasattr(tensor, "ds_id"):
        with _gathered([tensor]):
            return tensor.detach().clone()
    return tensor.detach()


def _gathered(tensors: list[Any]) -> Any:
    """Returns ZeRO-3's context in which parameters are whole; does nothing for other tensors."""
    partitioned = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
    if not partitioned:
        return torch.no_grad()
    import deepspeed

    return deepspeed.zero.GatheredParameters(partitioned)
