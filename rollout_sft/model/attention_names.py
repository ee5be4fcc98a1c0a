"""Says what a `model.attn_implementation` loads, and what to do about one that cannot be used.

Where the package of a flash attention is missing and the package `kernels` is there, transformers downloads a kernel
from its hub instead. Version 3 of `kernels-community/flash-attn2`, which transformers 5.20 and 5.21 take, and later
ones for a torch before 2.10, fails in the backward of models whose heads share keys and values (issue 1085 there).
"""

from __future__ import annotations

import difflib
from importlib.util import find_spec
from typing import Any

from transformers.integrations.hub_kernels import get_attn_kernel_version, is_kernel
from transformers.modeling_flash_attention_utils import (
    FLASH_ATTENTION_COMPATIBILITY_MATRIX,
    FLASH_ATTN_KERNEL_FALLBACK,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.import_utils import is_kernels_available

_PACKAGES = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
    "flash_attention_4": ("flash_attn.cute", "flash-attn-4"),
}
"""The module that an attention needs, and the name under which pip knows it."""

FAILS_GROUPED = ("kernels-community/flash-attn2", 3)
"""The kernel, and its version, whose backward fails where heads share keys and values."""


def attention_advice(name: str | None) -> str:
    """
    Returns what to write instead, or what to install.

    Args:
        name (`str`, *optional*):
            The value of `model.attn_implementation`.
    """
    without = "Leave attn_implementation out to go on without it."
    _, package = _PACKAGES.get(str(name), (None, None))
    if package is not None and _is_missing(str(name)):
        kernel = described_kernel(FLASH_ATTN_KERNEL_FALLBACK[str(name)])
        tried = (
            f"; transformers then takes {kernel} from its hub, which failed"
            if is_kernels_available()
            else f" (with the package kernels, transformers would download {kernel} instead)"
        )
        return f"the package {package} is missing{tried}. {without}"
    known = ("eager", *ALL_ATTENTION_FUNCTIONS.valid_keys())
    near = [] if name in known else difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {near[0]}?" if near else without


def kernel_instead(name: str | None) -> str | None:
    """Returns the kernel that transformers downloads for this attention; None where it downloads nothing."""
    if name in FLASH_ATTN_KERNEL_FALLBACK:
        version = int(name[-1])
        available = FLASH_ATTENTION_COMPATIBILITY_MATRIX[version]["general_availability_check"]
        return FLASH_ATTN_KERNEL_FALLBACK[name] if is_kernels_available() and not available() else None
    return name if is_kernel(name) else None


def described_kernel(kernel: str) -> str:
    """Returns the kernel's name and the version that transformers downloads."""
    return kernel if "@" in kernel else f"{kernel}, version {get_attn_kernel_version(kernel)}"


def reject_failing_kernel(name: str | None, config: Any) -> None:
    """
    Refuses a downloaded kernel whose backward is known to fail for this model, before it is downloaded.

    Args:
        name (`str`, *optional*):
            The value of `model.attn_implementation`, or the attention that a model has.
        config (`PretrainedConfig`):
            The model's configuration.

    Raises:
        `ValueError`: the kernel fails; the message says what to install or to name.
    """
    kernel = kernel_instead(name)
    if kernel != FAILS_GROUPED[0] or get_attn_kernel_version(kernel) != FAILS_GROUPED[1]:
        return
    text = config.get_text_config()
    heads, shared = (getattr(text, field, None) for field in ("num_attention_heads", "num_key_value_heads"))
    if shared is None or heads == shared:
        return
    raise ValueError(
        f"model.attn_implementation is {name}, for which transformers downloads {described_kernel(kernel)}"
        f"{' since the package flash-attn is missing' if kernel != name else ''}: its backward fails where "
        f"{heads} heads share {shared} of keys and values. Install flash-attn, or name {kernel}@v2; or leave "
        "attn_implementation out."
    )


def _is_missing(name: str) -> bool:
    try:
        return find_spec(_PACKAGES[name][0]) is None
    except ModuleNotFoundError:  # a package above it is missing
        return True
