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

import inspect
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from rollout_sft.model.shared_calls import SAME_CALL, SharedCalls
from rollout_sft.model.wrappers import base_model

logger = logging.getLogger(__name__)

STATES = {"cache_params", "past_key_values", "state", "use_cache"}
"""Arguments by which a layer takes a state; a layer that has one and a convolution along the row is recurrent."""

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

ATTENTION_BY_ROW = {
    "BioGptAttention",
    "BloomAttention",
    "FalconAttention",
    "GptOssAttention",
    "Inkling2FullAttention",
    "Inkling2SlidingAttention",
    "InklingAttention",
    "MptAttention",
    "XGLMAttention",
}
"""Classes of attention whose models give them the mask of one long segment, whatever positions the model gets, or that
count positions from the start of the row. Inkling computes its bias for the square of the row, in padding and for
neighbours too."""

PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""Arguments that a layer does not get when each segment is alone."""

TOKEN_BY_TOKEN = {"mamba_selective_scan"}
"""Functions whose fallback computes token by token. Their backward fills the states of the whole call with zeros for
each token, so that the cost of a call grows with the square of its longest segment, in every row."""
SAME_SCAN = 4
"""What [`SAME_CALL`] is for layers that call one of them: more padding costs more than it saves in calls."""
CHUNKED = {"mamba2_chunk_scan"}
"""Functions that pad each row to whole chunks of `layer.chunk_size` tokens (256 as a rule); the fallback pays for its
square. Any size gives the same result, so chunks have at most [`SAME_CALL`] tokens while segments are alone."""


class RecurrentLayers:
    """
    Holds the recurrent layers of a model, and runs them so that packed segments stay apart.

    Args:
        model (`nn.Module`):
            The unwrapped model.
        device (`torch.device`):
            Where it will be trained; the kernels run on CUDA.

    Attributes:
        looped (`dict[str, nn.Module]`):
            The layers that get each segment alone, by name.
        by_kernel (`dict[str, nn.Module]`):
            The layers whose installed kernels keep segments apart.
        attention (`dict[str, nn.Module]`):
            Attention layers that get each segment alone, with its part of the mask: those of the few models that make
            no mask for packs, where neither [`~rollout_sft.model.attention`] nor flash attention replaces them.
    """

    def __init__(self, model: nn.Module, *, device: torch.device):
        self._model = base_model(model)
        found = recurrent_layers(self._model)
        self.by_kernel = {n: layer for n, layer in found.items() if device.type == "cuda" and kept_apart(layer)}
        self.looped = {n: layer for n, layer in found.items() if n not in self.by_kernel}
        self.attention = _attention_by_row(self._model)
        if found or self.attention:
            logger.info("layers of packs: %s.", self.summary)

    @property
    def summary(self) -> str:
        """Says what runs how; empty for a model whose attention alone mixes along the row."""
        ways = (
            (self.by_kernel, "run by their own kernels, which get cu_seq_lens and seq_idx"),
            (self.looped, "run segment by segment, since no installed kernel keeps segments apart here"),
            (self.attention, "run segment by segment, since the model makes no mask for packs"),
        )
        return "; ".join(f"{_counted(layers)} {way}" for layers, way in ways if layers)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Replaces the forwards of the layers for a block of code; does nothing for a model without such layers."""
        layers = {**self.looped, **self.by_kernel, **self.attention}
        if not layers:
            yield
            return
        borders = _Borders()
        hook = self._model.register_forward_pre_hook(borders.note, with_kwargs=True)
        own = {name: layer.__dict__.get("forward") for name, layer in layers.items()}
        for name, layer in layers.items():
            layer._segments = _Segments(  # type: ignore[assignment]
                borders,
                own[name],
                kernel=name in self.by_kernel,
                masked=name in self.attention,
                spread=SAME_SCAN if _called(layer) & TOKEN_BY_TOKEN else SAME_CALL,
                chunked=bool(_called(layer) & CHUNKED),
            )
            # A bound method, so that a deep copy of the model calls the copy's layer.
            layer.forward = MethodType(_apart, layer)
        try:
            yield
        finally:
            hook.remove()
            for name, layer in layers.items():
                del layer.forward, layer._segments
                if own[name] is not None:
                    layer.forward = own[name]  # type: ignore[assignment]


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
    return bool(STATES & set(inspect.signature(type(module).forward).parameters))


def padding_enters_state(model: nn.Module) -> bool:
    """Says whether a recurrent layer of the model takes no mask, so that padding on the left changes what follows."""
    masks = {"attention_mask", "conv_mask"}
    layers = recurrent_layers(base_model(model)).values()
    return any(not masks & set(inspect.signature(type(layer).forward).parameters) for layer in layers)


def _attention_by_row(model: nn.Module) -> dict[str, nn.Module]:
    config: Any = getattr(model, "config", None)
    if getattr(config, "_attn_implementation", None) not in ("eager", "sdpa"):
        return {}
    return {name: module for name, module in model.named_modules() if type(module).__name__ in ATTENTION_BY_ROW}


def kept_apart(layer: nn.Module) -> bool:
    """Says whether every kernel that this recurrent layer calls is installed and keeps packed segments apart."""
    names = _called(layer)
    if hasattr(layer, "A_log") and not names & set(SCANS):  # the state is computed here, behind no kernel
        return False
    space, borders = vars(sys.modules[type(layer).__module__]), {**CONVOLUTION, **SCANS}
    called = names & set(borders)
    return bool(called) and all(_is_kernel(space[name], borders[name]) for name in called)


def _called(layer: nn.Module) -> set[str]:
    """Returns the names that the methods of this layer's class use; the functions that they call are among them."""
    methods = [inspect.unwrap(member) for member in vars(type(layer)).values() if inspect.isfunction(member)]
    return {name for method in methods for name in method.__code__.co_names}


def _is_kernel(function: Any, border: str | None) -> bool:
    """The fallback in PyTorch refuses the borders of segments before it looks at anything else."""
    if border is None:
        return False
    try:
        function(**{border: True})
    except ValueError as error:
        return "packed" not in str(error)
    except TypeError:  # the kernel misses its other arguments
        return True
    return True


class _Borders:
    """Knows the segments of the forward that runs, or that is computed again for its backward."""

    def __init__(self) -> None:
        self.given: Tensor | None = None
        self.alone = False
        """Whether a layer runs with one segment now: the layers inside it run as they are."""
        self._calls: dict[tuple[bool, int], SharedCalls] = {}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def note(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Runs before every forward of the model."""
        self.set(kwargs.get("cu_seq_lens_q"))

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

    def __init__(self, borders: _Borders, own: Any, *, kernel: bool, masked: bool, spread: int, chunked: bool):
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


def _counted(layers: dict[str, nn.Module]) -> str:
    numbers = Counter(type(layer).__name__ for layer in layers.values())
    return ", ".join(f"{number} {name}" for name, number in numbers.items())
