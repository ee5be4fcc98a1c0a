"""Stands in for causal-conv1d 1.5: same signature, same semantics, strict about `seq_idx`; any device, any dtype."""

import torch

__version__ = "1.5.0"
CALLS = []
"""The lengths of the segments of each call; None for a call without `seq_idx`."""


def causal_conv1d_fn(
    x,
    weight,
    bias=None,
    seq_idx=None,
    initial_states=None,
    return_final_states=False,
    final_states_out=None,
    activation=None,
):
    """A convolution of each channel along (rows, channels, tokens) that stays in its segment."""
    assert activation in (None, "silu", "swish"), activation
    assert initial_states is None
    assert not return_final_states
    channels, width = weight.shape
    assert x.shape[1] == channels, (x.shape, weight.shape)
    assert 2 <= width <= 4, f"causal-conv1d has no kernel of width {width}"
    if x.stride(2) != 1 and x.stride(1) != 1:
        x = x.contiguous()
    if seq_idx is not None:
        assert x.stride(1) == 1, "seq_idx needs the channels last in memory"
        assert seq_idx.dtype == torch.int32, f"seq_idx must have dtype int32, has {seq_idx.dtype}"
        assert seq_idx.shape == (x.shape[0], x.shape[2]), (seq_idx.shape, x.shape)
        assert seq_idx.is_contiguous()
    CALLS.append(None if seq_idx is None else seq_idx.unique_consecutive(return_counts=True)[1].tolist())
    out = torch.zeros_like(x)
    for place in range(width):
        back, tokens = width - 1 - place, x.shape[2]
        part = torch.nn.functional.pad(x, (back, 0))[:, :, :tokens]
        if seq_idx is not None:
            earlier = torch.nn.functional.pad(seq_idx, (back, 0), value=-1)[:, :tokens]
            part = part * (earlier == seq_idx)[:, None]
        out = out + part * weight[None, :, place, None]
    if bias is not None:
        out = out + bias[None, :, None]
    return out if activation is None else torch.nn.functional.silu(out)


def causal_conv1d_update(x, conv_state, weight, bias=None, activation=None, cache_seqlens=None):
    """Not needed: nothing generates here."""
    raise NotImplementedError
