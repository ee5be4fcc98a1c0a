"""Says what to do about a `model.attn_implementation` that transformers refuses."""

from __future__ import annotations

import difflib
from importlib.util import find_spec

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_PACKAGES = {"flash_attention_2": ("flash_attn", "flash-attn")}
"""The module that an attention needs, and the name under which pip knows it."""


def attention_advice(name: str | None) -> str:
    """
    Returns what to write instead, or what to install.

    Args:
        name (`str`, *optional*):
            The value of `model.attn_implementation`.
    """
    without = "Leave attn_implementation out to go on without it."
    module, package = _PACKAGES.get(str(name), (None, None))
    if module is not None and find_spec(module) is None:
        return f"the package {package} is missing. {without}"
    known = ("eager", *ALL_ATTENTION_FUNCTIONS.valid_keys())
    near = [] if name in known else difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {near[0]}?" if near else without
