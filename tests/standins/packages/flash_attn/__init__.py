"""Stands in for flash-attn 2.8: same signatures, same semantics, strict about arguments; any device, any dtype."""

import math

import torch

from tests.standins.attend import attend, check_borders

__version__ = "2.8.3"
CALLS = []
"""One dict per call."""


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    """Attention of segments that lie one behind the other in (tokens, heads, dim)."""
    _check(q, k, v, dropout_p, window_size, alibi_slopes, block_table, return_attn_probs)
    assert q.ndim == k.ndim == v.ndim == 3, (q.shape, k.shape, v.shape)
    check_borders("q", cu_seqlens_q, len(q), max_seqlen_q)
    check_borders("k", cu_seqlens_k, len(k), max_seqlen_k)
    assert len(cu_seqlens_q) == len(cu_seqlens_k), "as many segments of queries as of keys"
    queries, keys = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    CALLS.append({"function": "varlen", "queries": queries, "keys": keys, "window": window_size, "softcap": softcap})
    scale = 1 / math.sqrt(q.shape[-1]) if softmax_scale is None else softmax_scale
    left, right = window_size
    parts = zip(q.split(queries), k.split(keys), v.split(keys), strict=True)
    options = {"scale": scale, "causal": causal, "left": left, "right": right, "softcap": softcap or 0.0}
    return torch.cat([attend(*part, **options)[0] for part in parts])


def flash_attn_func(
    q,
    k,
    v,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    """Attention of rows of equal length, in (rows, tokens, heads, dim)."""
    _check(q, k, v, dropout_p, window_size, alibi_slopes, None, return_attn_probs)
    assert q.ndim == 4, q.shape
    CALLS.append({"function": "dense", "rows": len(q), "window": window_size, "softcap": softcap})
    scale = 1 / math.sqrt(q.shape[-1]) if softmax_scale is None else softmax_scale
    left, right = window_size
    options = {"scale": scale, "causal": causal, "left": left, "right": right, "softcap": softcap or 0.0}
    return torch.stack([attend(*row, **options)[0] for row in zip(q, k, v, strict=True)])


def flash_attn_with_kvcache(*args, **kwargs):
    """Generation is no part of what is stood in for."""
    raise AssertionError("flash_attn_with_kvcache was called while packs were trained")


def _check(q, k, v, dropout_p, window, alibi_slopes, block_table, return_attn_probs):
    assert q.dtype == k.dtype == v.dtype, f"q, k and v have {q.dtype}, {k.dtype}, {v.dtype}"
    if q.shape[-1] > 256:
        raise RuntimeError("FlashAttention forward only supports head dimension at most 256")
    assert q.shape[-1] == k.shape[-1] == v.shape[-1], (q.shape, k.shape, v.shape)
    assert k.shape[-2] == v.shape[-2], (k.shape, v.shape)
    assert not dropout_p, dropout_p
    assert alibi_slopes is None
    assert block_table is None
    assert not return_attn_probs
    assert isinstance(window, tuple), window
    assert all(type(side) is int for side in window), window
