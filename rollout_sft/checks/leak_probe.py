"""Probes whether a model leaks between packed segments.

If attention, a convolution or a recurrent state reaches across the border of two segments, packing silently trains a
slightly different model. Whether a model leaks depends on its class, the attention implementation and the arguments of
the forward. So the probe measures it, with two short forwards of three segments:

    forward 1    x  x  x     the three copies must agree; the first starts the row, so it equals x alone
    forward 2    x  y  x     the outer segments' logits must not move at all

Measured on transformers 5.23: isolated models move by exactly 0 (mixtures of experts by up to 1.8e-7), leaking ones
by at least 6.6e-5.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from rollout_sft.inputs.segment import Segment, pack_of
from rollout_sft.model.forward import Inputs, prepare_forward
from rollout_sft.model.wrappers import base_model, evaluation_mode
from rollout_sft.ranks.distributed import together
from rollout_sft.step.collate import forward_inputs
from rollout_sft.step.non_finite import NonFiniteError, first_non_finite

logger = logging.getLogger(__name__)

LEAK = 1e-5
"""Limit for the movement of an unchanged segment's logits, relative to the largest logit; less counts as none."""

COPIES = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""How far copies of one segment may differ: different positions in the row may be computed by different kernels."""


class LeakError(ValueError):
    """Raised when packed segments see each other, so that training on packs differs from training on the segments."""


@dataclass(frozen=True, kw_only=True)
class IsolationReport:
    """
    Holds what the probe measured; each number is relative to the largest logit.

    Args:
        leak (`float`):
            Movement of the outer segments' logits when the middle one was changed.
        copies (`float`):
            Largest difference between the logits of the first copy and those of the other copies.
        response (`float`):
            Movement of the changed segment's own logits; 0 would mean that the probe sees nothing.
    """

    leak: float
    copies: float
    response: float


def check_isolation(
    model: nn.Module,
    *,
    vocab_size: int | None = None,
    segment_length: int = 16,
    build_batch: Callable[[Sequence[Sequence[int]]], Inputs] | None = None,
) -> IsolationReport:
    """
    Measures whether packed segments are isolated, and raises an error if they are not. Works with any trainer.

    Args:
        model (`nn.Module`):
            A causal language model, wrapped or not, as it will be trained. Its mode does not change.
        vocab_size (`int`, *optional*):
            The probe draws token ids below it; taken from the model's configuration when not given.
        segment_length (`int`, *optional*, defaults to 16):
            Tokens of each of the three segments.
        build_batch (`Callable`, *optional*):
            Turns a list of token-id lists into the keyword arguments of one packed forward whose logits have shape
            `(1, tokens, vocabulary)`. Pass it to test your own collator; this project's collator is the default.

    Returns:
        [`IsolationReport`]: The measurements.

    Raises:
        [`LeakError`]: the segments see each other, or their logits differ from those they have alone; the message
            names the model class, the attention implementation, the measurement and what to do.
        [`~rollout_sft.step.non_finite.NonFiniteError`]: the weights or the logits are not finite.
    """
    inner: Any = base_model(model)
    vocabulary = vocab_size or inner.config.get_text_config().vocab_size
    x, y = _tokens(vocabulary, segment_length)
    device = next(inner.parameters()).device
    build = build_batch or _as_in_training(inner, device)
    with evaluation_mode(model), torch.no_grad():
        equal = _logits(model(**build([x, x, x])), 3, segment_length)
        changed = _logits(model(**build([x, y, x])), 3, segment_length)
    scale = max(1.0, float(equal.abs().max()))
    if not math.isfinite(scale + float(changed.abs().max())):
        _reject_non_finite(inner)
    report = IsolationReport(
        leak=max(_distance(equal[0], changed[0]), _distance(equal[2], changed[2])) / scale,
        copies=max(_distance(equal[0], equal[1]), _distance(equal[0], equal[2])) / scale,
        response=_distance(equal[1], changed[1]) / scale,
    )
    _judge(report, inner, equal.dtype if _weights(inner) == torch.float64 else _weights(inner))
    return report


def probe_before_training(trainer: Trainer) -> IsolationReport:
    """
    Runs the probe on the wrapped model in the precision of training; every rank calls it at the same point.

    Returns:
        [`IsolationReport`]: This rank's measurements.

    Raises:
        [`LeakError`]: one rank found a leak; raised on every rank.
    """

    def probe() -> IsolationReport:
        with trainer.compute_loss_context_manager():
            return check_isolation(trainer.model_wrapped)

    report, _ = together(probe, share=lambda _: None)
    logger.info("packed segments are isolated: leak %.1e, copies %.1e.", report.leak, report.copies)
    return report


def _reject_non_finite(model: nn.Module) -> None:
    name = first_non_finite(model)
    if name is not None:
        raise NonFiniteError(
            f"NaN weights at the start: {name} of {type(model).__name__} holds values that are not finite, so nothing "
            "can be trained. Start from other weights (an earlier checkpoint)."
        )
    raise NonFiniteError(
        f"{type(model).__name__} gives logits that are not finite in {_weights(model)}, though all of its weights are: "
        "its forward overflows. Set model.dtype: float32, or training.bf16."
    )


def _judge(report: IsolationReport, model: nn.Module, dtype: torch.dtype) -> None:
    config = getattr(model, "config", None)
    name = f"{type(model).__name__} with attention {getattr(config, '_attn_implementation', 'unknown')!r}, {dtype}"
    way_out = (
        "Try another model.attn_implementation (sdpa, flash_attention_2), another model class, or train without "
        "packing (training.packing: false). docs/masks.md lists what was found for other models."
    )
    if not report.leak <= LEAK:
        raise LeakError(
            f"{name}: packed segments see each other. Changing one segment moved its neighbours' logits by "
            f"{report.leak:.1e} of the largest logit (limit {LEAK:.0e}). {way_out}"
        )
    allowed = COPIES.get(dtype, 0.1)
    if not report.copies <= allowed:
        raise LeakError(
            f"{name}: a segment's logits change when it is packed behind another. Logits of two copies differ by "
            f"{report.copies:.1e} of the largest logit (limit {allowed:.0e}); positions may not restart. {way_out}"
        )
    if not report.response > LEAK:
        raise LeakError(
            f"{name}: the probe is blind. Changing a segment moved its own logits by {report.response:.1e} only, so "
            "nothing can be said about its neighbours. If the head is zero at the start on purpose, probe after a "
            "few steps with rollout_sft.check_isolation and set rollout_matching.check_isolation: false."
        )


def _as_in_training(model: nn.Module, device: torch.device) -> Callable[[Sequence[Sequence[int]]], Inputs]:
    """Builds the keyword arguments that a training forward would receive, with the logits of every position."""

    def build(token_lists: Sequence[Sequence[int]]) -> Inputs:
        pack = pack_of([Segment.from_lists(ids, ids, [0.0] * len(ids)).to(device) for ids in token_lists])
        every_position = torch.arange(pack.layout.total, device=device)
        return prepare_forward(model, {**forward_inputs(pack), "logits_to_keep": every_position})

    return build


def _tokens(vocabulary: int, length: int) -> tuple[list[int], list[int]]:
    """Returns two sequences that differ at every position; does not use the global generator."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(vocabulary, (length,), generator=generator)
    y = (x + 1 + torch.randint(vocabulary - 1, (length,), generator=generator)) % vocabulary
    return x.tolist(), y.tolist()


def _logits(output: Any, segments: int, length: int) -> Tensor:
    logits: Tensor = output.logits[0]
    return logits.reshape(segments, length, -1).double()


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _weights(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype
