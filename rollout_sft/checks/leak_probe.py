"""Probes whether a model leaks between packed segments, and whether it gives them the logits that they have alone.

If attention, a convolution or a recurrent state reaches across the border of two segments, packing silently trains a
slightly different model; so do wrong positions, and images that meet the tokens of others. Whether that happens depends
on the model's class, the attention implementation and the arguments of the forward. So the probe measures it, with
three short forwards:

    packed    x  x  x        the three copies must agree
    packed    x  y  x        the outer segments' logits must not move at all
    plain     x / y          one segment a row, without packed arguments: the packed logits must be these

For an image model each segment holds two images of different sizes, and y has other pixels as well as other tokens. A
third row of the plain forward has the tokens of x and the pixels of y, and its logits must differ from those of x.

Measured on transformers 5.23: isolated models move by exactly 0 (mixtures of experts by up to 1.8e-7), leaking ones
by at least 6.6e-5. Packed logits of image models are within 1e-6 of the plain ones in float32; with wrong positions
they are at least .06 away.
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

from rollout_sft.checks.probe_inputs import packed_inputs, plain_inputs, probe_segments
from rollout_sft.inputs.base import InputAdapter
from rollout_sft.inputs.choose import reads_images
from rollout_sft.inputs.segment import Segment
from rollout_sft.inputs.text import TextInputs
from rollout_sft.model.forward import Inputs, prepare_forward
from rollout_sft.model.quantized import prepare_quantized
from rollout_sft.model.wrappers import base_model, evaluation_mode
from rollout_sft.ranks.distributed import together
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
        alone (`float`):
            Largest difference between the packed logits and those of a plain forward.
        response (`float`):
            Movement of the changed segment's own logits; 0 would mean that the probe sees nothing.
        pixels (`float`, *optional*):
            Movement of a segment's logits when its pixels alone were changed; None for text.
    """

    leak: float
    copies: float
    alone: float
    response: float
    pixels: float | None


def check_isolation(
    model: nn.Module,
    *,
    vocab_size: int | None = None,
    segment_length: int = 16,
    adapter: InputAdapter | None = None,
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
            Tokens of text in each of the three segments.
        adapter (`InputAdapter`, *optional*):
            Adds images to the segments; [`~rollout_sft.inputs.choose.make_adapter`] makes it. Without one an image
            model is probed with text alone, which shows neither wrong positions nor wrong images.
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
    prepare_quantized(inner)
    adapter = adapter or TextInputs()
    if adapter.image_token_id is None and reads_images(inner.config):
        logger.warning(
            "%s reads images, but is probed with text alone, which shows neither wrong positions nor wrong images; "
            "pass adapter=make_adapter(config, tokenizer, image_processor).",
            type(inner).__name__,
        )
    segments = probe_segments(vocab_size or inner.config.get_text_config().vocab_size, segment_length, adapter)
    x, y = segments[:2]
    device = next(inner.parameters()).device

    def packed(*parts: Segment) -> Tensor:
        if build_batch is not None:
            return _logits(model(**build_batch([part.input_ids.tolist() for part in parts])), len(parts))
        return _logits(model(**_ready(inner, packed_inputs(parts, adapter), device)), len(parts))

    with evaluation_mode(model), torch.no_grad():
        equal, changed = packed(x, x, x), packed(x, y, x)
        plain = _logits(model(**_ready(inner, plain_inputs(segments, adapter), device)), len(segments))
    scale = max(1.0, float(equal.abs().max()))
    if not math.isfinite(scale + float(changed.abs().max()) + float(plain.abs().max())):
        _reject_non_finite(inner)
    report = IsolationReport(
        leak=max(_distance(equal[0], changed[0]), _distance(equal[2], changed[2])) / scale,
        copies=max(_distance(equal[0], equal[1]), _distance(equal[0], equal[2])) / scale,
        alone=max(_distance(changed[0], plain[0]), _distance(changed[1], plain[1])) / scale,
        response=_distance(equal[1], changed[1]) / scale,
        pixels=_distance(plain[0], plain[2]) / scale if len(plain) > 2 else None,
    )
    _judge(report, inner, equal.dtype if _weights(inner) == torch.float64 else _weights(inner))
    return report


def probe_before_training(trainer: Trainer, adapter: InputAdapter) -> IsolationReport:
    """
    Runs the probe on the wrapped model in the precision of training; every rank calls it at the same point.

    Args:
        trainer (`Trainer`):
            The trainer whose model is probed.
        adapter (`InputAdapter`):
            The adapter of the model.

    Returns:
        [`IsolationReport`]: This rank's measurements.

    Raises:
        [`LeakError`]: one rank found a leak; raised on every rank.
    """

    def probe() -> IsolationReport:
        with trainer.compute_loss_context_manager():
            return check_isolation(trainer.model_wrapped, adapter=adapter)

    report, _ = together(probe, share=lambda _: None)
    logger.info(
        "packed segments are isolated: leak %.1e, copies %.1e, %.1e from a plain forward.",
        report.leak,
        report.copies,
        report.alone,
    )
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
    allowed = max(allowed, LEAK)  # some models compute parts in float32, whatever their weights are
    if not report.alone <= allowed:
        raise LeakError(
            f"{name}: a packed segment does not have the logits that the model gives it alone. They differ by "
            f"{report.alone:.1e} of the largest logit (limit {allowed:.0e}): positions are wrong, or images are "
            f"missing or meet the tokens of others. {way_out}"
        )
    if report.pixels is not None and not report.pixels > LEAK:
        raise LeakError(
            f"{name}: the probe sees no images. Changing all pixels of a segment moved its logits by "
            f"{report.pixels:.1e} only, so images would not be trained. Look at the image processor and the weights of "
            "the vision tower."
        )
    if not report.response > LEAK:
        raise LeakError(
            f"{name}: the probe is blind. Changing a segment moved its own logits by {report.response:.1e} only, so "
            "nothing can be said about its neighbours. If the head is zero at the start on purpose, probe after a "
            "few steps with rollout_sft.check_isolation and set rollout_matching.check_isolation: false."
        )


def _ready(model: nn.Module, inputs: Inputs, device: torch.device) -> Inputs:
    """Moves the arguments to the device, and prepares them as in training."""
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    return prepare_forward(model, moved)


def _logits(output: Any, segments: int) -> Tensor:
    logits: Tensor = output.logits
    return logits.reshape(segments, -1, logits.shape[-1]).double()


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _weights(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype
