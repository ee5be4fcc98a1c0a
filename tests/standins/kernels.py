"""Switches the stand-ins on for a block of code, and everything back afterwards."""

import contextlib
import importlib
import inspect
import sys
from pathlib import Path

import pytest
import torch
import transformers.modeling_flash_attention_utils as flash
import transformers.utils
import transformers.utils.import_utils as available
from transformers import PreTrainedModel

from rollout_sft.model import attention
from tests.standins.attend import attend, check_borders, heads, seen

PACKAGES = Path(__file__).parent / "packages"


@contextlib.contextmanager
def flash_attention_2(monkeypatch):
    """Lets transformers take `flash_attention_2` on a CPU, with the stand-in; yields the list of its calls."""
    monkeypatch.syspath_prepend(str(PACKAGES))
    for module in (available, transformers.utils, flash):
        monkeypatch.setattr(module, "is_flash_attn_2_available", lambda *args, **kwargs: True, raising=False)
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *args, **kwargs: True)
    for name in [name for name in vars(flash) if name.startswith("_") and name.endswith(("_fn", "_implementation"))]:
        monkeypatch.setattr(flash, name, None)  # what an earlier import found
    package = importlib.import_module("flash_attn")
    assert Path(package.__file__).is_relative_to(PACKAGES), package.__file__
    try:
        yield package.CALLS
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]:
            del sys.modules[name]


@contextlib.contextmanager
def varlen_on_cuda(monkeypatch):
    """Sends `rollout_varlen` down its way on CUDA, with a CPU kernel below torch's operator; yields its calls."""
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="on CUDA it is refused before torch 2.11")
    if "window_size" not in inspect.signature(varlen.varlen_attn).parameters:
        pytest.skip("on CUDA it is refused before torch 2.11")
    calls = []

    def forward(query, key, value, cu_q, cu_k, max_q, max_k, dropout, causal, debug, *, scale=None, **options):
        check_borders("q", cu_q, len(query), max_q)
        check_borders("k", cu_k, len(key), max_k)
        assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1, "the last dimension must be contiguous"
        assert not dropout
        left, right = options["window_size_left"], options["window_size_right"]
        queries, keys = cu_q.diff().tolist(), cu_k.diff().tolist()
        calls.append({"queries": queries, "keys": keys, "longest": max_q, "causal": causal, "window": (left, right)})
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        shape = {"scale": scale, "causal": causal, "left": left, "right": right}
        parts = zip(query.split(queries), key.split(keys), value.split(keys), strict=True)
        outputs, sums = zip(*(attend(*part, **shape) for part in parts), strict=True)
        unused = torch.zeros(2, dtype=torch.uint64)
        return torch.cat(outputs), torch.cat(sums, 1), unused, unused.clone(), torch.empty(0)

    def backward(upstream, query, key, value, output, sums, cu_q, cu_k, max_q, max_k, dropout, causal, *_, **options):
        """The gradient by hand, from the saved output and sums, as the kernel computes it."""
        left, right = options["window_size_left"], options["window_size_right"]
        scale = query.shape[-1] ** -0.5 if options.get("scale") is None else options["scale"]
        queries, keys = cu_q.diff().tolist(), cu_k.diff().tolist()
        found = []
        rows = [x.split(queries) for x in (query, output, upstream)] + [x.split(keys) for x in (key, value)]
        for q, out, up, k, v, total in zip(*rows, sums.split(queries, 1), strict=True):
            many = q.shape[1]
            mask = seen(len(q), len(k), causal=causal, left=left, right=right)
            scores = torch.einsum("qhd,khd->hqk", q, heads(k, many)) * scale
            weights = (scores - total[:, :, None]).exp().masked_fill(~mask, 0)
            down = torch.einsum("qhd,khd->hqk", up, heads(v, many))
            down = weights * (down - (up * out).sum(-1).T[:, :, None]) * scale
            group = (k.shape[1], many // k.shape[1])
            found.append(
                (
                    torch.einsum("hqk,khd->qhd", down, heads(k, many)),
                    torch.einsum("hqk,qhd->khd", down, q).unflatten(1, group).sum(2),
                    torch.einsum("hqk,qhd->khd", weights, up).unflatten(1, group).sum(2),
                )
            )
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    assert varlen.varlen_attn is not None
    monkeypatch.setattr(attention, "has_kernel", lambda query: True)
    monkeypatch.setattr(attention, "HALF", (torch.float64, torch.float32, *attention.HALF))
    library = torch.library.Library("aten", "IMPL")
    try:
        library.impl("_flash_attention_forward", forward, "CPU")
        library.impl("_flash_attention_backward", backward, "CPU")
        yield calls
    finally:
        library._destroy()
