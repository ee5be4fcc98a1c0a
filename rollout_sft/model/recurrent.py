"""Runs the recurrent layers of packed segments so that no state or convolution crosses a border.

Linear attention, Mamba, short convolutions and RWKV carry a state along the row, and no mask stops it. While a
[`RecurrentLayers`] is active, each of these layers gets every segment of a pack as if it were alone:

    pack        a a a a a b c c c c c c
    layer       a a a a a .     states start anew in every row; segments of similar length share a call
                b . . . . .     the padding comes after the segment, so nothing that is kept depends on it
                c c c c c c
    result      a a a a a b c c c c c c

Where the kernels that keep segments apart are installed, the layer's own path runs instead, with `cu_seq_lens` and
`seq_idx`. Forwards that are not packed (generation, evaluation) run as always. Only the forwards of these layers are
replaced, in this one model, and they are put back afterwards.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from rollout_sft.model.layer_kinds import (
    CHUNKED,
    TOKEN_BY_TOKEN,
    attention_by_row,
    called_names,
    kept_apart,
    recurrent_layers,
)
from rollout_sft.model.rotary import embed_apart, forget_earlier_rows, rotary_by_row
from rollout_sft.model.shared_calls import SAME_CALL, SharedCalls
from rollout_sft.model.torch_on_cpu import compute_on_cpu
from rollout_sft.model.wrappers import base_model

logger = logging.getLogger(__name__)

PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""Arguments that a layer does not get when each segment is alone."""

SAME_SCAN = 4
"""What [`SAME_CALL`] is for layers that call one of [`TOKEN_BY_TOKEN`], where padding costs more than calls."""


class RecurrentLayers:
    """
    Holds the recurrent layers of a model, and runs them so that packed segments stay apart.

    Args:
        model (`nn.Module`):
            The unwrapped model.
        device (`torch.device`):
            Where it will be trained; the kernels run on CUDA. On a CPU their functions in PyTorch take their place; see
            [`~rollout_sft.model.torch_on_cpu`].
        one_call (`bool`, *optional*, defaults to `False`):
            Whether all segments of a pack share one call of a layer, however long they are. ZeRO-3 needs it: each call
            of a module inside gathers weights, so every rank must make equally many.

    Attributes:
        looped (`dict[str, nn.Module]`):
            The layers that get each segment alone, by name.
        by_kernel (`dict[str, nn.Module]`):
            The layers whose installed kernels keep segments apart.
        attention (`dict[str, nn.Module]`):
            Attention layers that get each segment alone, with its part of the mask: those of the few models that make
            no mask for packs, where neither [`~rollout_sft.model.attention`] nor flash attention replaces them.
        rotary (`dict[str, nn.Module]`):
            Rotary embeddings that get each segment alone, since they look at the longest position of the row; see
            [`~rollout_sft.model.rotary`].
    """

    def __init__(self, model: nn.Module, *, device: torch.device, one_call: bool = False):
        self._model = base_model(model)
        self._one_call = one_call
        found = recurrent_layers(self._model)
        if device.type == "cpu":
            compute_on_cpu(self._model)
        self.by_kernel = {n: layer for n, layer in found.items() if device.type == "cuda" and kept_apart(layer)}
        self.looped = {n: layer for n, layer in found.items() if n not in self.by_kernel}
        self.attention = attention_by_row(self._model)
        self.rotary = rotary_by_row(self._model)
        if one_call and self.attention:
            raise ValueError(
                f"{type(self._model).__name__} runs {_counted(self.attention)} segment by segment, and under ZeRO-3 "
                "each of these calls would gather weights: ranks with other packs would wait for each other forever. "
                "Use ZeRO stage 2 or FSDP2."
            )
        if self.summary:
            logger.info("layers of packs: %s.", self.summary)

    @property
    def summary(self) -> str:
        """Says what runs how; empty for a model whose attention alone mixes along the row."""
        ways = (
            (self.by_kernel, "run by their own kernels, which get cu_seq_lens and seq_idx"),
            (self.looped, "run segment by segment, since no installed kernel keeps segments apart here"),
            (self.attention, "run segment by segment, since the model makes no mask for packs"),
            (self.rotary, "run segment by segment, since their frequencies depend on the longest position of the row"),
        )
        return "; ".join(f"{_counted(layers)} {way}" for layers, way in ways if layers)

    def _spread(self, layer: nn.Module) -> int:
        """Returns how many tokens shorter a segment may be than the longest one of its call."""
        if self._one_call:
            return sys.maxsize
        return SAME_SCAN if called_names(layer) & TOKEN_BY_TOKEN else SAME_CALL

    @contextmanager
    def active(self) -> Iterator[None]:
        """Replaces the forwards of the layers for a block of code; does nothing for a model without such layers."""
        layers = {**self.looped, **self.by_kernel, **self.attention}
        if not layers and not self.rotary:
            yield
            return
        borders = _Borders()
        hook = self._model.register_forward_pre_hook(borders.note, with_kwargs=True)
        replaced = {**layers, **self.rotary}
        own = {name: layer.__dict__.get("forward") for name, layer in replaced.items()}
        for name, layer in layers.items():
            layer._segments = _Segments(  # type: ignore[assignment]
                borders,
                own[name],
                kernel=name in self.by_kernel,
                masked=name in self.attention,
                spread=self._spread(layer),
                chunked=bool(called_names(layer) & CHUNKED),
            )
            # A bound method, so that a deep copy of the model calls the copy's layer.
            layer.forward = MethodType(_apart, layer)
        for name, rotary in self.rotary.items():
            rotary._segments = _Segments(borders, own[name])  # type: ignore[assignment]
            rotary.forward = MethodType(_embed, rotary)
        try:
            yield
        finally:
            hook.remove()
            for rotary in self.rotary.values():
                forget_earlier_rows(rotary)
            for name, layer in replaced.items():
                del layer.forward, layer._segments
                if own[name] is not None:
                    layer.forward = own[name]  # type: ignore[assignment]


class _Borders:
    """Knows the segments of the forward that runs, or that is computed again for its backward."""

    def __init__(self) -> None:
        self.given: Tensor | None = None
        self.mask: Tensor | None = None
        """The mask of a rectangle that is padded on the right, for rotary embeddings; None while generating."""
        self.alone = False
        """Whether a layer runs with one segment now: the layers inside it run as they are."""
        self._calls: dict[tuple[bool, int], SharedCalls] = {}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def note(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Runs before every forward of the model."""
        self.set(kwargs.get("cu_seq_lens_q"))
        mask = kwargs.get("attention_mask")
        padded = isinstance(mask, Tensor) and mask.ndim == 2 and kwargs.get("use_cache") is False
        self.mask = mask if padded else None

    def set(self, given: Tensor | None) -> None:
        """Takes the borders of one forward, or None for a forward that is not packed."""
        self.given, self._calls = given, {}

    def calls(self, *, masked: bool, spread: int) -> SharedCalls:
        """Returns how a layer is called; computed once for all layers with the same arguments."""
        if (masked, spread) not in self._calls:
            assert self.given is not None
            self._calls[masked, spread] = SharedCalls(self.given, masked=masked, spread=spread)
        return self._calls[masked, spread]


class _Segments:
    """What a replaced layer needs: the borders, its own forward, and how it is called.

    Args:
        kernel (`bool`):
            Whether its own kernels keep segments apart.
        masked (`bool`):
            Whether it gets a mask.
        spread (`int`):
            How many tokens shorter a segment may be than the longest one of its call.
        chunked (`bool`):
            Whether it computes in chunks of its `chunk_size`.
    """

    def __init__(
        self,
        borders: _Borders,
        own: Any,
        *,
        kernel: bool = False,
        masked: bool = False,
        spread: int = SAME_CALL,
        chunked: bool = False,
    ):
        self.borders = borders
        self.own = own
        self.kernel = kernel
        self.masked = masked
        self.spread = spread
        self.chunked = chunked


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _apart(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward of a recurrent layer while [`RecurrentLayers`] is active."""
    segments: Any = layer._segments
    own = segments.own or MethodType(type(layer).forward, layer)
    borders: _Borders = segments.borders
    given = kwargs.get("cu_seq_lens_q")
    if borders.given is None or borders.alone or (segments.kernel and given is not None and "seq_idx" in kwargs):
        return own(*args, **kwargs)
    if given is not None and given is not borders.given:  # an earlier forward, computed again for its backward
        borders.set(given)
    now = borders.calls(masked=segments.masked, spread=segments.spread)
    tokens = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)).shape[1]
    if tokens != now.total:
        raise ValueError(
            f"{type(layer).__name__} got a row of {tokens} tokens, but the last packed forward of its model had "
            f"{now.total}. Run the backward of a pack before the next forward."
        )
    kwargs = {name: value for name, value in kwargs.items() if name not in PACKED}
    positional = [now.split(value) for value in args]
    named = {name: now.split(value) for name, value in kwargs.items()}
    borders.alone = True
    chunk: Any = layer.chunk_size if segments.chunked else None
    if segments.chunked:
        layer.chunk_size = min(chunk, SAME_CALL)
    try:
        results = [
            own(*(parts[i] for parts in positional), **{name: parts[i] for name, parts in named.items()})
            for i in range(len(now.shapes))
        ]
    finally:
        borders.alone = False
        if segments.chunked:
            layer.chunk_size = chunk
    return now.join(results)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _embed(rotary: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward of a rotary embedding of [`~rollout_sft.model.rotary`] while [`RecurrentLayers`] is active."""
    segments: Any = rotary._segments
    borders: _Borders = segments.borders
    return embed_apart(
        rotary,
        segments.own or MethodType(type(rotary).forward, rotary),
        args,
        kwargs,
        borders=None if borders.given is None or borders.alone else borders.given.tolist(),
        row_lens=None if borders.mask is None else borders.mask.sum(1).tolist(),
    )


def _counted(layers: dict[str, nn.Module]) -> str:
    numbers = Counter(type(layer).__name__ for layer in layers.values())
    return ", ".join(f"{number} {name}" for name, number in numbers.items())
