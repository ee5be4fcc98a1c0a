"""The attention of one segment, as FlashAttention defines it: causal and windows count from the bottom right corner."""

import math

import torch


def seen(queries, keys, *, causal, left, right):
    """Which keys each query sees; `left` and `right` below 0 mean without limit."""
    i = torch.arange(queries)[:, None] + keys - queries
    j = torch.arange(keys)[None]
    mask = torch.ones(queries, keys, dtype=torch.bool)
    if causal:
        mask &= j <= i
    if left >= 0:
        mask &= j >= i - left
    if right >= 0:
        mask &= j <= i + right
    return mask


def heads(x, number):
    """Repeats the heads of keys or values of shape (tokens, heads, dim), for grouped queries."""
    assert number % x.shape[1] == 0, (number, x.shape)
    return x.repeat_interleave(number // x.shape[1], dim=1)


def attend(q, k, v, *, scale, causal, left, right, softcap=0.0):
    """Returns the output (queries, heads, dim) and the logarithm of each row's sum (heads, queries)."""
    k, v = heads(k, q.shape[1]), heads(v, q.shape[1])
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    mask = seen(len(q), len(k), causal=causal, left=left, right=right).to(q.device)
    scores = scores.masked_fill(~mask, -math.inf)
    weights = torch.softmax(scores, dim=-1).masked_fill(~mask.any(-1)[None, :, None], 0.0)
    return torch.einsum("hqk,khd->qhd", weights, v), scores.logsumexp(-1)


def check_borders(name, borders, tokens, longest):
    """What the kernels require of `cu_seqlens` and `max_seqlen`."""
    assert borders.dtype == torch.int32, f"cu_seqlens_{name} must have dtype int32, has {borders.dtype}"
    assert borders.ndim == 1, f"cu_seqlens_{name} has {borders.ndim} dimensions"
    assert borders.is_contiguous(), f"cu_seqlens_{name} must be contiguous"
    values = borders.tolist()
    assert values[0] == 0, f"cu_seqlens_{name} begins at {values[0]}"
    assert values[-1] == tokens, f"cu_seqlens_{name} ends at {values[-1]}, but there are {tokens} tokens"
    assert values == sorted(values), f"cu_seqlens_{name} decreases: {values}"
    assert type(longest) is int or longest.ndim == 0, f"max_seqlen_{name} is a {type(longest).__name__}"
    needed = int(borders.diff().max())
    assert needed <= int(longest), f"max_seqlen_{name} is {int(longest)}, but a segment has {needed} tokens"
