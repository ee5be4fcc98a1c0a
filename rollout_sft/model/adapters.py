"""Puts a peft adapter on a model: a new one, or the saved one of a run that goes on from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import set_seed

from rollout_sft.config.adapter import read_adapter
from rollout_sft.config.sections import ModelSpec
from rollout_sft.model.weights import compare_weights, reading

_SAVED = "adapter_config.json"
_MAY_DIFFER = {"base_model_name_or_path", "revision", "task_type", "inference_mode", "init_lora_weights"}
"""Fields that say where a saved adapter came from and how it began."""


def load_adapted(spec: ModelSpec, load: Callable[[ModelSpec], nn.Module], *, seed: int = 0) -> nn.Module:
    """
    Loads a model, with an adapter where the section `model` asks for one.

    A folder that holds an adapter names the weights below it. With `model.peft` the adapter is trained on; without
    it, the adapter is merged into the weights, and all of them are trained.

    Args:
        spec (`ModelSpec`):
            The section.
        load (`Callable[[ModelSpec], nn.Module]`):
            Loads a model without an adapter.
        seed (`int`, *optional*, defaults to 0):
            Seed of a new adapter's random weights.

    Raises:
        `ValueError`: `model.peft` and the saved adapter differ, or peft cannot put the adapter on this model, or the
            model does not have the weights that were saved.
    """
    folder = None if spec.model_name_or_path is None else Path(spec.model_name_or_path)
    if folder is not None and (folder / _SAVED).is_file():
        return _resume_adapter(spec, folder, load)
    model = load(spec)
    if spec.peft is None:
        return model
    set_seed(seed)
    return _new_adapter(spec.peft, model)


def base_of(name: str) -> str:
    """
    Returns the weights below the adapter that a folder holds, or the name itself where it holds none.

    Raises:
        `ValueError`: the adapter does not say which weights it belongs to.
    """
    path = Path(name) / _SAVED
    if not path.is_file():
        return name
    below: str | None = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not below:
        raise ValueError(
            f"model.model_name_or_path is {name!r}, an adapter that does not say which weights it belongs to; set "
            f"base_model_name_or_path in its {_SAVED}."
        )
    return below


def _new_adapter(peft: dict[str, Any], model: nn.Module) -> nn.Module:
    from peft import get_peft_model

    try:
        adapted: nn.Module = get_peft_model(model, read_adapter(peft))
    # peft checks few values, and computes with the others.
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"model.peft does not fit {type(model).__name__}: {error}") from error
    return adapted


def _resume_adapter(spec: ModelSpec, folder: Path, load: Callable[[ModelSpec], nn.Module]) -> nn.Module:
    saved = json.loads((folder / _SAVED).read_text(encoding="utf-8"))
    below = base_of(str(folder))
    if spec.peft is not None:
        asked = read_adapter(spec.peft).to_dict()
        for key in ("peft_type", *(key for key in spec.peft if key not in _MAY_DIFFER)):
            value = getattr(asked[key], "value", asked[key])
            value = sorted(value) if isinstance(value, set) else value
            before = sorted(saved[key]) if isinstance(value, list) and saved.get(key) else saved.get(key)
            # A text stands for many modules, and the saved adapter names them.
            if key in saved and before != value and not (isinstance(value, str) and isinstance(before, list)):
                raise ValueError(
                    f"model.peft.{key} is {value}, but the adapter in {folder} was trained with {saved[key]}; set it "
                    "back, or leave model.peft out to merge the adapter into the weights."
                )
    from peft import PeftModel

    model: Any = load(replace(spec, model_name_or_path=below, config=None))
    trained = [p for p in model.parameters() if p.requires_grad]
    with reading(folder):
        adapted: Any = PeftModel.from_pretrained(model, str(folder), is_trainable=spec.peft is not None)
    compare_weights(adapted, folder)
    if spec.peft is not None:
        result: nn.Module = adapted
        return result
    merged: nn.Module = adapted.merge_and_unload()
    for parameter in trained:  # peft froze them
        parameter.requires_grad_(True)
    return merged
