"""Reads `model.peft`: the type of an adapter and the fields of peft's own configuration class."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from rollout_sft.config.shorten import cut, shorten

_KEY = "model.peft"
_OTHER_NAMES = {"rank": "r", "lora_r": "r", "lora_rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
"""Names under which other programs take fields of peft."""


def read_adapter(values: Mapping[str, Any]) -> Any:
    """
    Makes peft's configuration of an adapter.

    Args:
        values (`Mapping[str, Any]`):
            `peft_type`, such as `LORA`, and fields of its configuration class; `task_type` is `CAUSAL_LM` when not
            given.

    Returns:
        `PeftConfig`: the configuration.

    Raises:
        `ValueError`: the type or a field is unknown, a value is refused by peft, or the adapter adds virtual tokens.
        `ImportError`: peft is not installed.
    """
    try:
        from peft import PromptLearningConfig
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    except ImportError as error:
        raise ImportError(f"{_KEY} is given, but peft is not installed: pip install 'packsched[peft]'.") from error
    classes = {str(kind.value): owner for kind, owner in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    types = {name for name, owner in classes.items() if not issubclass(owner, PromptLearningConfig)}
    given = str(values.get("peft_type", ""))
    name = given.upper()
    if name in classes and name not in types:
        raise ValueError(
            f"{_KEY}.peft_type is {given}, which is refused: its virtual tokens stand before a row and not before each "
            "packed segment. Use an adapter that changes weights, such as LORA."
        )
    if name not in types:
        raise ValueError(f"{_KEY}.peft_type is {shorten(given)}; it takes {', '.join(sorted(types))}.")
    owner = classes[name]
    known = [spec.name for spec in fields(owner) if spec.init]
    for key in values:
        if key != "peft_type" and key not in known:
            near = (
                [_OTHER_NAMES[key]]
                if _OTHER_NAMES.get(key) in known
                else difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            )
            hint = f"the nearest valid key is {near[0]}" if near else f"it takes {', '.join(known[:12])}"
            raise ValueError(f"unknown key {_KEY}.{cut(str(key))}: {hint} ({owner.__name__} of peft).")
    try:
        return owner(**{"task_type": "CAUSAL_LM", **{k: v for k, v in values.items() if k != "peft_type"}})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{_KEY}: peft refuses these values: {cut(str(error), 400)}") from error
