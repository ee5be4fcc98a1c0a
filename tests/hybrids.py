"""Tiny hybrid models, and their forwards in float64 throughout."""

import contextlib

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, set_seed

from tests.tiny_families import tiny_config

_HYBRIDS = (
    "bailing_hybrid",
    "bamba",
    "falcon_h1",
    "falcon_mamba",
    "granitemoehybrid",
    "inkling2_text",
    "inkling_text",
    "jamba",
    "kimi_linear",
    "lfm2",
    "lfm2_moe",
    "lfm3",
    "mamba",
    "mamba2",
    "minimax",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_next",
    "qwen4_exp_text",
    "recurrent_gemma",
    "rwkv",
    "zamba",
    "zamba2",
    "zaya",
)
HYBRIDS = tuple(family for family in _HYBRIDS if family in CONFIG_MAPPING)
"""Every causal language model of the installed transformers with recurrent layers that builds tiny."""

FLOAT32 = ("inkling2_text", "nemotron_h")
"""Families whose experts or routers refuse float64; a gradient in float32 differs by its rounding."""
TOLERANCE = {"kimi_linear": 1e-7, "olmo_hybrid": 1e-9, **dict.fromkeys(FLOAT32, 1e-5)}
"""Where a family keeps a float32 part that [`float64_throughout`] does not reach; 1e-10 for the others."""


def hybrid(family, dtype=torch.float64, **overrides):
    """A model of the family in evaluation mode, the same in every call; its experts are those that know float64."""
    set_seed(0)
    config = tiny_config(family, **overrides)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, experts_implementation="eager")
    return model.to(dtype).eval()  # some make a few weights in float32, whatever is asked for


@contextlib.contextmanager
def float64_throughout():
    """
    Leaves out the places where these models compute in float32 whatever their dtype is.

    Their rounding depends on what shares an operation, so it hides differences below 1e-8.
    """
    single, convert, soft = torch.Tensor.float, torch.Tensor.to, torch.nn.functional.softmax

    def to(self, *args, **kwargs):
        if self.dtype == torch.float64:
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            kwargs = {name: torch.float64 if v is torch.float32 else v for name, v in kwargs.items()}
        return convert(self, *args, **kwargs)

    def softmax(values, *args, **kwargs):
        if values.dtype == torch.float64:
            kwargs.pop("dtype", None)
        return soft(values, *args, **kwargs)

    torch.Tensor.float = lambda self, *a, **k: self if self.dtype == torch.float64 else single(self, *a, **k)
    torch.Tensor.to = to
    torch.nn.functional.softmax = softmax
    try:
        yield
    finally:
        torch.Tensor.float, torch.Tensor.to, torch.nn.functional.softmax = single, convert, soft
