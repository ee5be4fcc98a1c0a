"""Loads saved weights into a model that exists, and proves that they are the ones that were saved.

transformers saves some weights under other names than a model in training has: fused experts are written one by one,
image towers under older names. `load_state_dict` does not know these names and leaves such weights as they are.

- [`digests`] describes every tensor of a model by its own name; the description is saved beside the weights.
- [`load_weights`] loads as `from_pretrained` does, which undoes the renaming, and copies the values into the model.
- [`compare_weights`] describes the model again after any load, and raises where a tensor differs.

A digest reads the weights once, at about the speed of memory.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import xxhash
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils import SAFE_WEIGHTS_NAME

from rollout_sft.config.shorten import cut

DIGESTS = "weight_digests.json"
"""Name of the file beside saved weights that holds the result of [`digests`]."""
_SHOWN = 3
_ADVICE = (
    "Training would go on from other weights than those that were saved. Take another checkpoint; if the weights were "
    f"changed on purpose, delete {DIGESTS} beside them and start a new run from them."
)


class WeightsError(ValueError):
    """Raised when a model does not get the weights that were saved."""


def digests(model: nn.Module, state: Mapping[str, Any] | None = None) -> dict[str, list[str]]:
    """
    Describes the weights that a checkpoint of a model has to restore.

    Args:
        model (`nn.Module`):
            The model without the wrappers of DDP and torch.compile. Where its weights are sharded, the call is a
            collective.
        state (`Mapping[str, Any]`, *optional*):
            Its state dict, where it was gathered already.

    Returns:
        `dict[str, list[str]]`: the dtype and a checksum of the values and shape of every parameter and persistent
        buffer; with a peft adapter, of the parameters that are trained.
    """
    tensors = _tensors(model) if state is None else state
    trained = _trained(model)
    return {name: _describe(tensor) for name, tensor in tensors.items() if trained is None or name in trained}


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """
    Gives a model the weights that a folder holds.

    A `PreTrainedModel` is loaded a second time on the CPU, sharded if it was sharded when it was loaded, and its
    parameters and buffers are copied. Any other model, and one that got further modules after it was built, takes
    tensors by their names.

    Args:
        model (`nn.Module`):
            The model without wrappers and without an adapter.
        folder (`str` or `Path`):
            What `Trainer` saved.

    Raises:
        [`WeightsError`]: a tensor is missing, left over or of another shape, or a file cannot be read.
    """
    with reading(folder):
        if not isinstance(model, PreTrainedModel):
            safetensors.torch.load_model(model, Path(folder) / SAFE_WEIGHTS_NAME, strict=True)
            return
        kind: Any = next(c for c in type(model).__mro__ if not issubclass(c, FSDPModule))
        loaded, report = _initialised_once(kind).from_pretrained(
            folder,
            config=model.config,
            dtype=_widest(model),
            distributed_config=getattr(model.config, "distributed_config", None),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        values, own = loaded.state_dict(), model.state_dict()
        if values.keys() != own.keys():
            safetensors.torch.load_model(model, Path(folder) / SAFE_WEIGHTS_NAME, strict=True)
            return
    check_report(report, folder)
    for name, tensor in _tensors(model).items():
        tensor.copy_(values[name])


def compare_weights(model: nn.Module, folder: str | Path) -> None:
    """
    Compares the weights of a model with those that were saved; does nothing where the folder has no digests.

    A tensor of another dtype than the saved one is not compared.

    Args:
        model, folder:
            As in [`digests`] and [`load_weights`].

    Raises:
        [`WeightsError`]: a tensor of the model is not what was saved, or only one of the two has it.
    """
    if not has_digests(folder) or hides_weights(model):
        return
    with reading(folder):
        saved: dict[str, list[str]] = json.loads((Path(folder) / DIGESTS).read_text(encoding="utf-8"))
    tensors = _tensors(model)
    trained = _trained(model)
    found = {name: _describe(tensors[name]) for name in saved if name in tensors}
    differ = [
        name
        for name, (dtype, checksum) in found.items()
        if saved[name][0] == dtype and saved[name] != [dtype, checksum]
    ]
    _raise_if(
        folder,
        {
            "saved, but not in the model": saved.keys() - tensors.keys(),
            "in the model, but not saved": (tensors.keys() if trained is None else trained) - saved.keys(),
            f"not what was saved, of {len(saved)}": differ,
        },
    )


def has_digests(folder: str | Path) -> bool:
    """Returns whether this project saved the weights in a folder, so that they must come back whole."""
    return (Path(folder) / DIGESTS).is_file()


def check_report(report: Mapping[str, Any], folder: str | Path) -> None:
    """
    Raises where `from_pretrained` could not give a model all that a folder holds.

    Args:
        report (`Mapping[str, Any]`):
            What `from_pretrained(..., output_loading_info=True)` returned.
        folder (`str` or `Path`):
            For the message.

    Raises:
        [`WeightsError`]: names the tensors.
    """
    _raise_if(
        folder,
        {
            "missing from the files": report["missing_keys"],
            "in the files, but not in the model": report["unexpected_keys"],
            "of another shape": [name for name, *_ in report["mismatched_keys"]],
        },
    )


def hides_weights(model: nn.Module) -> bool:
    """Returns whether the parameters of a model are no tensors of the model: in ZeRO-3 and the first FSDP."""
    return is_deepspeed_zero3_enabled() or any(isinstance(m, FullyShardedDataParallel) for m in model.modules())


@contextmanager
def reading(folder: str | Path) -> Iterator[None]:
    """Turns what libraries raise about files that do not fit into a [`WeightsError`] that names the folder."""
    try:
        yield
    except WeightsError:
        raise
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise WeightsError(
            f"the weights in {folder} cannot be loaded: {type(error).__name__}: {cut(str(error), 600)} {_ADVICE}"
        ) from error


def _raise_if(folder: str | Path, problems: Mapping[str, Collection[str]]) -> None:
    found = [f"{what}: {_some(names)}" for what, names in problems.items() if names]
    if found:
        raise WeightsError(f"the weights in {folder} do not come back whole: {'; '.join(found)}. {_ADVICE}")


def _initialised_once(kind: Any) -> Any:
    """Returns the class with one difference: weights that were all loaded are not initialised (youtu zeroes a row)."""

    def initialize_weights(self: Any) -> None:
        if not all(getattr(value, "_is_hf_initialized", False) for value in self.state_dict(keep_vars=True).values()):
            kind.initialize_weights(self)

    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "initialize_weights": initialize_weights})


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    shown = ", ".join([*ordered[:_SHOWN], "..."] if len(ordered) > _SHOWN else ordered)
    return f"1 tensor ({shown})" if len(ordered) == 1 else f"{len(ordered)} tensors ({shown})"


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns parameters and persistent buffers by name, tied ones under each of their names."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def has_adapter(model: nn.Module) -> bool:
    """Returns whether peft wraps the model, so that only the adapter is saved and loaded."""
    return hasattr(model, "peft_config") and not isinstance(model, PreTrainedModel)


def _trained(model: nn.Module) -> set[str] | None:
    """Returns the names of what an adapter trains, which is all that is saved with it; None without an adapter."""
    if not has_adapter(model):
        return None
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}


def _widest(model: nn.Module) -> torch.dtype:
    """Returns a dtype that holds the values of every parameter."""
    return functools.reduce(torch.promote_types, {p.dtype for p in model.parameters() if p.is_floating_point()})


def _describe(tensor: Any) -> list[str]:
    whole = (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()
    checksum = xxhash.xxh3_128(str(tuple(whole.shape)).encode())
    checksum.update(whole.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return [str(whole.dtype).removeprefix("torch."), checksum.hexdigest()]
