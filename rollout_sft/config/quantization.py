"""Reads `model.quantization_config`: the fields of transformers' `BitsAndBytesConfig`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from transformers import BitsAndBytesConfig

from rollout_sft.config.shorten import cut, shorten

_KEY = "model.quantization_config"
_FIELDS = [name for name in inspect.signature(BitsAndBytesConfig.__init__).parameters if name not in ("self", "kwargs")]
INSTALL = "pip install 'packsched[quantization]'"


def read_quantization(values: Mapping[str, Any]) -> BitsAndBytesConfig:
    """
    Makes transformers' configuration of quantized weights.

    Args:
        values (`Mapping[str, Any]`):
            `load_in_4bit: true` or `load_in_8bit: true`, and other fields of `BitsAndBytesConfig`.

    Returns:
        `BitsAndBytesConfig`: the configuration.

    Raises:
        `ValueError`: a field is unknown, which transformers would ignore; transformers refuses a value; neither width
            is asked for; or 8 bits come with a threshold for outliers.
        `ImportError`: bitsandbytes is not installed.
    """
    for key in values:
        if key not in _FIELDS:
            near = difflib.get_close_matches(str(key), _FIELDS, n=1, cutoff=0.5)
            hint = f"the nearest valid key is {near[0]}" if near else f"it takes {', '.join(_FIELDS)}"
            raise ValueError(f"unknown key {_KEY}.{cut(str(key))}: {hint} (BitsAndBytesConfig of transformers).")
    try:
        config = BitsAndBytesConfig(**values)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{_KEY}: transformers refuses these values: {cut(str(error), 400)}") from error
    if not config.load_in_4bit and not config.load_in_8bit:
        raise ValueError(f"{_KEY} is {shorten(dict(values))}; it takes load_in_4bit: true or load_in_8bit: true.")
    if config.load_in_8bit and config.llm_int8_threshold:
        raise ValueError(f"{_KEY}.llm_int8_threshold is {config.llm_int8_threshold:g}: {NO_OUTLIERS}")
    if find_spec("bitsandbytes") is None:
        raise ImportError(f"{_KEY} is given, but bitsandbytes is not installed: {INSTALL}.")
    return config


NO_OUTLIERS = (
    "8-bit layers then look for outliers among all tokens of a row and compute their columns in another precision, so "
    "packed segments would see each other. Set llm_int8_threshold: 0.0."
)
