"""Runs the attention of each packed segment alone: no dense L x L mask, nothing to install, no wait for the device.

transformers knows it as `rollout_varlen`, next to `sdpa` and `eager`. What it does depends on the mask it gets:

    the mark of this module    runs each segment alone, found by `cu_seq_lens`: one fused kernel on CUDA
                               (`torch.nn.attention.varlen`), a loop of `sdpa` on the CPU. There the masks for
                               sliding windows of w keys have about w x 2w elements, for segments of any length
    anything else              does exactly what `sdpa` does, with the masks that `sdpa` gets

So generation, evaluation and padded batches of the same model do not change. The mark is an empty tensor of four
dimensions, which transformers passes to the attention instead of building a mask. A layer that gets the mark without
`cu_seq_lens` raises an error.
"""

from __future__ import annotations

import inspect
import logging
import sys
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rollout_sft.inputs.choose import why_refused
from rollout_sft.model.attention_names import reject_failing_kernel
from rollout_sft.model.layer_kinds import counted_in_row, recurrent_layers
from rollout_sft.model.wrappers import base_model

logger = logging.getLogger(__name__)

VARLEN = "rollout_varlen"
"""The name under which transformers knows this attention."""

HALF = (torch.bfloat16, torch.float16)
PLAIN = {"full_attention", "sliding_attention"}
"""Types of layers that this attention runs."""
RECURRENT = {"linear_attention", "mamba", "conv", "hybrid", "moe", "mlp"}
"""Types of layers of a model with recurrent layers that hold no attention, or a plain one beside the recurrent part."""
BLOCK = 256
"""Fewest queries in one block, on the CPU, where a segment is longer than the sliding window."""


def mark_packed(inputs: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """
    Marks a packed row, so that the model's forward runs [`varlen_attention`]; only for models that have it.

    Args:
        inputs (`dict`):
            Keyword arguments of the model's forward.
        model (`nn.Module`):
            The model without its wrappers.

    Returns:
        `dict`: `inputs`; packed ones get the mark as `attention_mask`.
    """
    config: Any = getattr(model, "config", None)
    if "cu_seq_lens_q" not in inputs or getattr(config, "_attn_implementation", None) != VARLEN:
        return inputs
    mark = torch.empty((1, 1, 0, 0), dtype=torch.bool, device=inputs["input_ids"].device)
    return {**inputs, "attention_mask": mark}


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """
    Computes the attention of one layer; see `AttentionInterface` for what all attentions share.

    Args:
        query (`Tensor` of shape `(1, heads, tokens, head_dim)`):
            `key` and `value` have this shape too; their number of heads is the same or a divisor of it.
        attention_mask (`Tensor`, *optional*):
            The mark, or any mask of `sdpa`.
        sliding_window (`int`, *optional*):
            The most keys that each query sees, its own included.
        cu_seq_lens_q (`Tensor` of shape `(segments + 1,)`, int32):
            Where each segment begins and ends.
        max_length_q (`int`):
            Tokens of the longest segment, or an upper bound.

    Returns:
        `tuple[Tensor, None]`: the output of shape `(1, tokens, heads, head_dim)`.
    """
    if attention_mask is None or attention_mask.ndim != 4 or attention_mask.numel():
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **kwargs
        )
    unknown = sorted(n for n in ("softcap", "s_aux", "position_bias", "cache") if kwargs.get(n) is not None)
    if unknown or cu_seq_lens_q is None or max_length_q is None or not getattr(module, "is_causal", True):
        raise ValueError(
            f"{type(module).__name__} cannot run packed segments with varlen attention: "
            + (f"it uses {', '.join(unknown)}" if unknown else "it is not causal or was not handed cu_seq_lens")
            + ". Set rollout_matching.attention: model."
        )
    if has_kernel(query):
        return _fused(query, key, value, cu_seq_lens_q, max_length_q, scaling, sliding_window), None
    lens = cu_seq_lens_q.diff().tolist()
    parts = zip(query.split(lens, dim=2), key.split(lens, dim=2), value.split(lens, dim=2), strict=True)
    outputs = []
    for q, k, v in parts:  # no list comprehension: torch 2.9 cannot compile this one
        outputs.append(_alone(module, q, k, v, dropout, scaling, sliding_window))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), None


def has_kernel(query: Tensor) -> bool:
    """Returns whether one fused kernel runs all segments of this row."""
    return query.is_cuda


def _alone(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """Runs one segment with `sdpa`; one longer than the sliding window in blocks, which use parts of one mask."""
    tokens = query.shape[2]
    if sliding_window is None or tokens <= sliding_window:
        return sdpa_attention_forward(module, query, key, value, None, dropout, scaling)[0]
    block, before = max(sliding_window, BLOCK), sliding_window - 1
    columns = torch.arange(before + block, device=query.device)  # the keys before a block, then its own
    ahead = columns[None] - torch.arange(min(block, tokens), device=query.device)[:, None]
    unseen = (ahead < 0) | (ahead > before)
    # From a boolean mask each call would make one like this, and keep it for the backward.
    mask = query.new_zeros(unseen.shape).masked_fill_(unseen, float("-inf"))[None, None]
    outputs = []
    keys, values = key.split(block, dim=2), value.split(block, dim=2)
    for i, q in enumerate(query.split(block, dim=2)):
        k, v = keys[i], values[i]
        if i:
            k, v = (torch.cat([x[i - 1][:, :, block - before :], x[i]], dim=2) for x in (keys, values))
        own = mask[:, :, : q.shape[2], (0 if i else before) : before + q.shape[2]]
        outputs.append(sdpa_attention_forward(module, q, k, v, own, dropout, scaling)[0])
    return torch.cat(outputs, dim=1)


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_lens: Tensor,
    max_length: int,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    from torch.nn.attention import varlen

    kernel: Any = varlen.varlen_attn
    dtype = query.dtype
    if dtype not in HALF:  # autocast lowers only the operators that it knows, and it does not know this one
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else torch.bfloat16
    q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
    left = -1 if sliding_window is None or sliding_window >= max_length else sliding_window - 1
    # Older versions accept groups of heads without this argument.
    grouped = {"enable_gqa": True} if "enable_gqa" in inspect.signature(kernel).parameters else {}
    bounds = (cu_seq_lens, cu_seq_lens, max_length, max_length)
    output: Tensor = kernel(q, k, v, *bounds, scale=scaling, window_size=(left, 0), **grouped)
    return output[None]


AttentionInterface.register(VARLEN, varlen_attention)
AttentionMaskInterface.register(VARLEN, sdpa_mask)


def choose_attention(
    model: nn.Module, wanted: str, *, device: torch.device, autocast: torch.dtype | None = None
) -> str:
    """
    Sets the attention that packs are trained with, and logs it once.

    Args:
        model (`nn.Module`):
            The unwrapped model.
        wanted (`str`):
            `model` keeps the model's attention. `varlen` sets [`varlen_attention`] or raises. `auto` sets it if it can
            run and the model would otherwise run `sdpa` or `eager`, whose masks for packs are dense.
        device (`torch.device`):
            Where the model will be trained.
        autocast (`torch.dtype`, *optional*):
            The dtype of the trainer's mixed precision.

    Returns:
        `str`: the name of the attention.

    Raises:
        `ValueError`: `varlen` is wanted and cannot run, the model reads images and has no input adapter, or its own
            attention would scale queries by their place in the pack, or fail in its backward; the message says why.
    """
    base: Any = base_model(model)
    refusal = why_refused(base.config) if hasattr(base, "config") else None
    if refusal is not None:
        raise ValueError(refusal)
    own = str(getattr(getattr(base, "config", None), "_attn_implementation", None))
    if hasattr(base, "config"):
        reject_failing_kernel(own, base.config)
    scaled = counted_in_row(base)
    if scaled and own not in ("sdpa", "eager", VARLEN):
        raise ValueError(
            f"model.attn_implementation is {own}, but {', '.join(scaled)} scales queries by their place in the row, so "
            "packed segments would not be computed as they are alone. Set it to sdpa or eager, which run each segment "
            "alone, or train without packing (training.packing: false)."
        )
    if wanted == "model" or (wanted == "auto" and own not in ("sdpa", "eager", VARLEN)):
        logger.info("attention of packs: the model's own, %s.", own)
        return own
    obstacle = _obstacle(base, device, autocast)
    if obstacle is None:
        if own != VARLEN:
            base.set_attn_implementation(VARLEN)
        logger.info("attention of packs: %s, each segment by itself (the model had %s).", VARLEN, own)
        return VARLEN
    if wanted == "varlen":
        raise ValueError(f"rollout_matching.attention is varlen, but {obstacle}. Set it to auto or model.")
    logger.info("attention of packs: the model's own, %s, since %s.", own, obstacle)
    return own


def reject_chunks_of_row(model: nn.Module, packing_length: int) -> None:
    """
    Refuses packs that are longer than a chunk of `chunked_attention` where chunks are counted from the row's start.

    Args:
        model (`nn.Module`):
            The unwrapped model.
        packing_length (`int`):
            The most tokens of a pack.

    Raises:
        `ValueError`: transformers is older than 5.23, whose masks count the chunks of each segment from its own start.
    """
    config: Any = getattr(base_model(model), "config", None)
    text = config.get_text_config() if config is not None else None
    chunk = getattr(text, "attention_chunk_size", None)
    chunked = "chunked_attention" in (getattr(text, "layer_types", None) or ())
    if not chunked or not chunk or packing_length <= chunk or Version(transformers.__version__) >= Version("5.23"):
        return
    raise ValueError(
        f"{type(base_model(model)).__name__} attends in chunks of {chunk} tokens, which transformers "
        f"{transformers.__version__} counts from the start of a pack, so segments of a pack of {packing_length} tokens "
        "would not be computed as they are alone. Install transformers 5.23 or later, set global_max_length to at most "
        f"{chunk}, or train without packing (training.packing: false)."
    )


UNABLE = {
    "doge": "its attention computes its own mask from the one it gets",
    "nemotron": "its attention does not get cu_seq_lens from its model",
}


def _obstacle(model: nn.Module, device: torch.device, autocast: torch.dtype | None) -> str | None:
    """Says why this model cannot run varlen attention here; returns None if it can."""
    name = type(model).__name__
    if not getattr(model, "_supports_attention_backend", False):
        return f"{name} does not hand cu_seq_lens to attentions that are registered from outside"
    config: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    if config.model_type in UNABLE:
        return f"{name} cannot run it: {UNABLE[config.model_type]}"
    others = sorted(
        set(getattr(config, "layer_types", None) or ()) - PLAIN - (RECURRENT if recurrent_layers(model) else set())
    )
    if others:
        return f"{name} has layers that are not plain attention ({', '.join(others)})"
    if _window_in_mask_alone(model, config):
        return f"{name} has its sliding window in the mask alone, which varlen attention does not get"
    if counted_in_row(model):
        return f"{name} scales its queries by their place in the row"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return f"{name} caps its attention logits, which the kernel does not know"
    if any(parameter.endswith("sinks") for parameter, _ in model.named_parameters()):
        return f"{name} has attention sinks, which the kernel does not know"
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"there is no varlen kernel for {device.type}"
    if getattr(config, "attention_dropout", 0.0):
        return f"attention_dropout is {config.attention_dropout}, which the kernel does not do"
    dtype = autocast or next(model.parameters()).dtype
    if dtype not in HALF:
        return f"the kernel computes in bfloat16 or float16, not in {dtype}"
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_dim > 256 or head_dim % 8:
        return f"head_dim is {head_dim}; the kernel takes multiples of 8 up to 256"
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return f"torch {torch.__version__} has no torch.nn.attention.varlen"
    if "window_size" not in inspect.signature(varlen_attn).parameters:
        return f"varlen attention of torch {torch.__version__} has no window_size (2.11 has)"
    return None


def _window_in_mask_alone(model: nn.Module, config: Any) -> bool:
    """Says whether masks have a sliding window that layers do not hand to their attention (Phi-MoE, Qwen2-MoE)."""
    if not getattr(config, "sliding_window", None):
        return False
    decoder: Any = getattr(model, model.base_model_prefix, model)  # type: ignore[call-overload]
    if "create_sliding_window_causal_mask" not in vars(sys.modules[type(decoder).__module__]):
        return False
    layers = {type(module) for module in model.modules() if hasattr(module, "is_causal")}
    return any("sliding_window" not in inspect.getsource(layer.forward) for layer in layers)
