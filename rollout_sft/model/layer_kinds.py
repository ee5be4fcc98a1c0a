"""Tells which layers of a model mix along the row without a mask that stops it, and which kernels keep segments apart.

[`~rollout_sft.model.recurrent`] runs these layers for packs. The tables name classes and functions of transformers.
Tests read the installed transformers, and fail for a family whose layers with a state are not found and for an unknown
kernel.
"""

from __future__ import annotations

import inspect
import sys
from types import CodeType
from typing import Any

from torch import nn

from rollout_sft.config.releases import CACHE_ARGUMENTS
from rollout_sft.model.wrappers import base_model

WITHOUT_CONVOLUTION = {
    "Inkling2DynamicShortConvolution",
    "MiniMaxLightningAttention",
    "Qwen4ExpTextNGramEmbedding",
    "RwkvFeedForward",
    "RwkvSelfAttention",
}
"""Classes of layers that mix along the row without attention, and hold no `nn.Conv1d` to recognise them by."""

CONVOLUTION = {"causal_conv1d_fn": "seq_idx"}
SCANS = {
    "chunk_kimi_delta_attention": "cu_seqlens",
    "mamba2_chunk_scan": "seq_idx",
    "mamba2_split_conv1d_scan_combined": "seq_idx",
    "mamba_inner_fn": None,
    "mamba_selective_scan": None,
    "torch_chunk_gated_delta_rule": "cu_seqlens",
}
"""The functions of transformers behind which a kernel may stand, and the argument that keeps segments apart, if any."""
DECODING = {
    "causal_conv1d_update",
    "mamba2_selective_state_update",
    "mamba_selective_state_update",
    "recurrent_kimi_delta_attention",
    "torch_recurrent_gated_delta_rule",
}
"""The same for a single token of a generation, which no pack reaches."""

ATTENTION_BY_ROW = {
    "BioGptAttention",
    "BloomAttention",
    "FalconAttention",
    "GptOssAttention",
    "Inkling2FullAttention",
    "Inkling2SlidingAttention",
    "InklingAttention",
    "Llama4TextAttention",
    "MptAttention",
    "XGLMAttention",
}
"""Classes of attention whose models give them the mask of one long segment, whatever positions the model gets, or that
count positions from the start of the row. Inkling computes its bias for the square of the row, in padding and for
neighbours too."""

COUNTED_IN_ROW = {
    "InklingAttention": "log_scaling_n_floor",
    "Llama4TextAttention": "floor_scale",
}
"""Classes of attention that scale their queries by the place in the row, and the field of the configuration up to which
the scale is 1. No other attention than eager and sdpa gives them each segment alone."""

TOKEN_BY_TOKEN = {"mamba_selective_scan"}
"""Functions whose fallback computes token by token. Their backward fills the states of the whole call with zeros for
each token, so that the cost of a call grows with the square of its longest segment, in every row."""
CHUNKED = {"mamba2_chunk_scan"}
"""Functions that pad each row to whole chunks of `layer.chunk_size` tokens (256 as a rule); the fallback pays for its
square. Any size gives the same result, so chunks have at most
[`~rollout_sft.model.shared_calls.SAME_CALL`] tokens while segments are alone."""


def recurrent_layers(model: nn.Module) -> dict[str, nn.Module]:
    """
    Finds the layers that mix along the row and are not attention: those with a convolution along the row that take a
    state, and a few classes without a convolution.

    Args:
        model (`nn.Module`):
            The unwrapped model.

    Returns:
        `dict[str, nn.Module]`: the layers by their names in the model.
    """
    return {name: module for name, module in model.named_modules() if _is_recurrent(module)}


def _is_recurrent(module: nn.Module) -> bool:
    if type(module).__name__ in WITHOUT_CONVOLUTION:
        return True
    if not any(isinstance(child, nn.Conv1d) for child in module.children()):
        return False
    return bool(CACHE_ARGUMENTS & set(inspect.signature(type(module).forward).parameters))


def padding_enters_state(model: nn.Module) -> bool:
    """Says whether a recurrent layer of the model takes no mask, so that padding on the left changes what follows."""
    masks = {"attention_mask", "conv_mask"}
    layers = recurrent_layers(base_model(model)).values()
    return any(not masks & set(inspect.signature(type(layer).forward).parameters) for layer in layers)


def attention_by_row(model: nn.Module) -> dict[str, nn.Module]:
    """Finds the layers of [`ATTENTION_BY_ROW`], by their names; none where flash or varlen attention replaces them."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "_attn_implementation", None) not in ("eager", "sdpa"):
        return {}
    return {name: module for name, module in model.named_modules() if type(module).__name__ in ATTENTION_BY_ROW}


def counted_in_row(model: nn.Module) -> dict[str, int]:
    """Finds the classes of [`COUNTED_IN_ROW`] in a model, and the number of tokens up to which they do not scale."""
    found = {type(m).__name__: m for m in model.modules() if type(m).__name__ in COUNTED_IN_ROW}
    fields = {name: getattr(module.config, COUNTED_IN_ROW[name], None) for name, module in found.items()}
    return {name: int(limit) for name, limit in fields.items() if limit is not None}


def kept_apart(layer: nn.Module) -> bool:
    """Says whether every kernel that this recurrent layer calls is installed, keeps packed segments apart and gets
    their borders."""
    names = called_names(layer)
    if hasattr(layer, "A_log") and not names & set(SCANS):  # the state is computed here, behind no kernel
        return False
    space, borders = vars(sys.modules[type(layer).__module__]), {**CONVOLUTION, **SCANS}
    called = names & set(borders)
    return bool(called) and all(
        is_kernel(space[name], border) and _hands_on(layer, border) for name in called for border in [borders[name]]
    )


def called_names(layer: nn.Module) -> set[str]:
    """Returns the names that the methods of this layer's class use; the functions that they call are among them."""
    return {name for code in _methods(layer) for name in code.co_names}


def _methods(layer: nn.Module) -> list[CodeType]:
    return [inspect.unwrap(member).__code__ for member in vars(type(layer)).values() if inspect.isfunction(member)]


def _hands_on(layer: nn.Module, border: str | None) -> bool:
    """
    Says whether a layer gives its kernel the borders that it gets.

    `seq_idx` has the same name in layer and kernel, so `**kwargs` hands it on. What a kernel takes as `cu_seqlens` is
    `cu_seq_lens_q` in a model, so the layer has to name it; kimi_linear of transformers 5.23 does not.
    """
    if border != "cu_seqlens":
        return True
    constants = [constant for code in _methods(layer) for constant in code.co_consts]
    return any(constant == border or (isinstance(constant, tuple) and border in constant) for constant in constants)


def kernel_names(layer: nn.Module) -> set[str]:
    """Returns the functions that a recurrent layer calls and behind which a kernel may stand."""
    return called_names(layer) & {*CONVOLUTION, *SCANS, *DECODING}


def is_kernel(function: Any, border: str | None) -> bool:
    """
    Says whether a kernel stands behind a function of transformers, one that knows the borders of segments.

    Asks the function: its fallback in PyTorch refuses borders before it looks at anything else.
    """
    if border is None:
        return False
    try:
        function(**{border: True})
    except ValueError as error:
        return "packed" not in str(error)
    except TypeError:  # the kernel misses its other arguments
        return True
    return True
