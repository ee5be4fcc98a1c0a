"""Stands in for causal-conv1d, whose functions refuse tensors on a CPU."""


def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, initial_states=None, activation=None):
    raise RuntimeError("Expected x.is_cuda() to be true, but got false.")


def causal_conv1d_update(x, conv_state, weight, bias=None, activation=None, cache_seqlens=None):
    raise RuntimeError("Expected x.is_cuda() to be true, but got false.")
