"""Probes packs of segments whose lengths lie on both sides of every length that the model knows.

What a forward reads of the whole row shows only at some lengths: `longrope` changes its frequencies behind the original
context, Llama 4 its query scale behind `floor_scale`, and a window, a chunk or a top-k matters only to what is longer.
The short probe of [`~rollout_sft.checks.leak_probe`] never gets there. So one pack of `packing_length` tokens is built:

    lengths    every whole number of the configuration counts as one, named or not; one segment is longer than all that
               fit into the pack, and the others halve the rest of it
    plain      each segment alone: its packed logits must be these
    cut        the same row, with its long segments cut into pieces: the short ones' logits must not move at all

The first comparison sees everything, within the rounding of the precision. The second sees what long neighbours do to
short ones, exactly, in every precision. The most uneven pack of the first window is compared with its segments too.

Costs three forwards of one pack without gradients, and two of the real pack: less than two micro-steps, which is less
than one step from `gradient_accumulation_steps: 2` on (measured: decision 28).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from packsched import PackLayout
from rollout_sft.checks.leak_probe import COPIES, LEAK, LeakError
from rollout_sft.checks.probe_inputs import make_segment, packed_inputs, plain_inputs
from rollout_sft.inputs.base import InputAdapter
from rollout_sft.inputs.segment import Segment
from rollout_sft.inputs.text import TextInputs
from rollout_sft.model.forward import prepare_forward
from rollout_sft.model.layer_kinds import recurrent_layers
from rollout_sft.model.wrappers import base_model, evaluation_mode
from rollout_sft.ranks.distributed import together
from rollout_sft.step.collate import PackedBatch

logger = logging.getLogger(__name__)

SHORTEST = 4
"""Tokens of the shortest segment of the pack."""
PIECES = 64
"""Long segments are cut into pieces of this part of the pack; segments up to that length are watched."""
COMPARED = 8
"""Positions that are compared in each segment: its last one, and others at equal distances."""


@dataclass(frozen=True, kw_only=True)
class LengthReport:
    """
    Holds what the probe measured; the numbers are relative to the largest logit.

    Args:
        lens (`tuple[int, ...]`):
            The lengths of the pack's segments.
        alone (`float`):
            Largest difference between the packed logits of a segment and those of its plain forward.
        moved (`float`):
            Movement of the short segments' logits when the long ones were cut.
    """

    lens: tuple[int, ...]
    alone: float
    moved: float


def check_lengths(
    model: nn.Module, packing_length: int, *, adapter: InputAdapter | None = None, vocab_size: int | None = None
) -> LengthReport | None:
    """
    Compares a pack of very different segments with each segment alone, and raises an error if they differ.

    Args:
        model (`nn.Module`):
            A causal language model, wrapped or not, as it will be trained. Its mode does not change.
        packing_length (`int`):
            The longest pack of training.
        adapter (`InputAdapter`, *optional*):
            Adds images to the second longest segment, if it has room for them.
        vocab_size (`int`, *optional*):
            The probe draws token ids below it; taken from the model's configuration when not given.

    Returns:
        [`LengthReport`]: The measurements; None where the pack has no room for two segments.

    Raises:
        [`~rollout_sft.checks.leak_probe.LeakError`]: a segment's logits depend on the lengths of its neighbours or on
            its place in the pack.
    """
    inner: Any = base_model(model)
    adapter = adapter or TextInputs()
    lens = segment_lengths(inner.config.to_dict(), packing_length, longest=_longest_segment(inner))
    if len(lens) < 2:
        return None
    vocabulary = vocab_size or inner.config.get_text_config().vocab_size
    pictured = sorted(range(len(lens)), key=lambda i: -lens[i])[1]
    segments = [make_segment(vocabulary, n, adapter, seed=i, images=i == pictured) for i, n in enumerate(lens)]
    device = next(inner.parameters()).device
    with evaluation_mode(model), torch.no_grad():
        packed = _packed(model, inner, packed_inputs(segments, adapter), segments, device)
        alone = _distance(packed, _alone(model, inner, segments, adapter, device))
        piece = max(SHORTEST, packing_length // PIECES)
        watched = [i for i, segment in enumerate(segments) if segment.encoded_len <= piece or segment.images]
        cut = [part for i, s in enumerate(segments) for part in ([s] if i in watched else _pieces(s, piece))]
        places = [i for i, part in enumerate(cut) if any(part is segments[w] for w in watched)]
        moved = _packed(model, inner, packed_inputs(cut, adapter), cut, device)
    scale = max(1.0, *(float(logits.abs().max()) for logits in packed))
    report = LengthReport(
        lens=tuple(segment.encoded_len for segment in segments),
        alone=alone / scale,
        moved=_distance([packed[i] for i in watched], [moved[i] for i in places]) / scale,
    )
    _judge(report, inner, f"a pack of segments of {_shown(report.lens)} tokens")
    return report


def segment_lengths(config: Mapping[str, Any], packing_length: int, *, longest: int | None = None) -> list[int]:
    """
    Chooses the lengths of the probe's segments, which fill one pack.

    Args:
        config (`Mapping[str, Any]`):
            The model's configuration. Every whole number in it, at any depth, counts as a length.
        packing_length (`int`):
            The sum of the lengths, less what is too short for a segment.
        longest (`int`, *optional*):
            The longest segment that the model can compute, if there is a limit.

    Returns:
        `list[int]`: the lengths in the order of the pack: the longest segment in the middle, and before and behind it
        shorter ones, each half as long as the one that is nearer to it.
    """
    room = packing_length - 2 * SHORTEST  # for one segment before the longest, and one behind it
    known = [n for n in whole_numbers(config) if 1 < n < room]
    largest = max([packing_length // 2, *(n + 1 for n in known)])
    limit = packing_length if longest is None else longest
    lens = [min(largest, limit)]
    while (rest := packing_length - sum(lens)) >= SHORTEST:
        lens.append(min(max(rest // 2, SHORTEST), limit))
    before, behind = lens[1::2], lens[2::2]
    return [n for n in (*before[::-1], lens[0], *behind) if n > 0]


def whole_numbers(values: Any) -> Iterator[int]:
    """Yields every whole number of a configuration, at any depth."""
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, list | tuple | set):
        for value in values:
            yield from whole_numbers(value)
    elif isinstance(values, int | float) and not isinstance(values, bool) and float(values).is_integer():
        yield int(values)


def probe_lengths_before_training(trainer: Trainer, adapter: InputAdapter, packing_length: int) -> LengthReport | None:
    """
    Runs [`check_lengths`] on the wrapped model in the precision of training; every rank calls it at the same point.

    Returns:
        [`LengthReport`]: This rank's measurements; None where the pack has no room for two segments.

    Raises:
        [`~rollout_sft.checks.leak_probe.LeakError`]: one rank found a difference; raised on every rank.
    """

    def probe() -> LengthReport | None:
        with trainer.compute_loss_context_manager():
            return check_lengths(trainer.model_wrapped, packing_length, adapter=adapter)

    report, _ = together(probe, share=lambda _: None)
    if report is not None:
        logger.info(
            "packed segments of %s tokens are %.1e from plain forwards; the lengths of neighbours moved them by %.1e.",
            _shown(report.lens),
            report.alone,
            report.moved,
        )
    return report


def probe_window(trainer: Trainer, batches: Sequence[PackedBatch], adapter: InputAdapter) -> float | None:
    """
    Compares the most uneven pack of a window with its segments alone; every rank calls it at the same point.

    Args:
        trainer (`Trainer`):
            The trainer whose model is probed.
        batches (`Sequence[PackedBatch]`):
            This rank's batches that are trained next; at least one.
        adapter (`InputAdapter`):
            Adds pixels, and makes the plain forwards.

    Returns:
        `float` or `None`: the largest difference on this rank, relative to the largest logit; None where no rank has a
        pack of different lengths.

    Raises:
        [`~rollout_sft.checks.leak_probe.LeakError`]: one rank found a difference; raised on every rank.
    """
    chosen = max((batch.segments for batch in batches), key=_unevenness)
    _, counts = together(lambda: None, share=lambda _: len(chosen) if _unevenness(chosen) else 0)
    if not any(counts):
        return None
    inner: Any = base_model(trainer.model_wrapped)
    device = next(inner.parameters()).device

    def probe() -> float:
        model = trainer.model_wrapped
        with trainer.compute_loss_context_manager(), evaluation_mode(model), torch.no_grad():
            packed = _packed(model, inner, packed_inputs(chosen, adapter), chosen, device)
            # A forward may be a collective: all ranks run as many as the one with the most segments.
            rows = [*chosen, *[min(chosen, key=lambda s: s.encoded_len)] * (max(counts) - len(chosen))]
            plain = _alone(model, inner, rows, adapter, device)
        scale = max(1.0, *(float(logits.abs().max()) for logits in packed))
        report = LengthReport(
            lens=tuple(s.encoded_len for s in chosen), alone=_distance(packed, plain) / scale, moved=0.0
        )
        _judge(report, inner, f"the pack of segments of {_shown(report.lens)} tokens in the first window")
        return report.alone

    difference, _ = together(probe, share=lambda _: None)
    logger.info("the most uneven pack of the window is %.1e from plain forwards of its segments.", difference)
    return difference


def _unevenness(segments: Sequence[Segment]) -> int:
    lens = [segment.encoded_len for segment in segments]
    return max(lens) - min(lens)


def _longest_segment(model: Any) -> int | None:
    """Returns how many positions a model without rotary embeddings has, since it may fail behind them."""
    if any("rotary" in type(module).__name__.lower() for module in model.modules()):
        return None
    config = model.config.get_text_config().to_dict()
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)


def _packed(
    model: nn.Module, inner: nn.Module, inputs: dict[str, Any], segments: Sequence[Segment], device: torch.device
) -> list[Tensor]:
    """Runs a packed forward; returns the logits of the compared positions of each segment."""
    layout = PackLayout.from_lengths([segment.encoded_len for segment in segments])
    own = [_compared(segment) for segment in segments]
    positions = torch.cat([layout.remap(i, chosen) for i, chosen in enumerate(own)])
    logits = _logits(model, inner, {**inputs, "logits_to_keep": positions}, positions, device)
    return list(logits.split([len(chosen) for chosen in own]))


def _alone(
    model: nn.Module, inner: nn.Module, segments: Sequence[Segment], adapter: InputAdapter, device: torch.device
) -> list[Tensor]:
    """Runs a plain forward of each segment; returns the logits of the compared positions."""
    found = []
    for segment in segments:
        positions = _compared(segment)
        inputs = {**plain_inputs([segment], adapter), "logits_to_keep": positions}
        found.append(_logits(model, inner, inputs, positions, device))
    return found


def _logits(
    model: nn.Module, inner: nn.Module, inputs: dict[str, Any], positions: Tensor, device: torch.device
) -> Tensor:
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    ready = prepare_forward(inner, moved)
    logits: Tensor = model(**ready).logits[0]
    return (logits if "logits_to_keep" in ready else logits[positions.to(device)]).double()


def _compared(segment: Segment) -> Tensor:
    return torch.linspace(0, segment.encoded_len - 1, COMPARED).long().unique()


def _pieces(segment: Segment, length: int) -> list[Segment]:
    ids = segment.input_ids.split(length)
    return [Segment.from_lists(part.tolist(), part.tolist(), [0.0] * len(part), sample_id="<probe>") for part in ids]


def _distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    apart = [float((x - y).abs().max()) for x, y in zip(a, b, strict=False)]
    return max(apart) if all(d == d for d in apart) else float("nan")


def _judge(report: LengthReport, model: nn.Module, what: str) -> None:
    config = getattr(model, "config", None)
    weights = next(model.parameters()).dtype
    name = f"{type(model).__name__} with attention {getattr(config, '_attn_implementation', 'unknown')!r}, {weights}"
    way_out = (
        "Something in its forward depends on the longest segment of the row or on the place in it, such as dynamic "
        "frequencies. Try another model.attn_implementation (sdpa, eager), lower global_max_length below that length, "
        "or train without packing (training.packing: false). docs/masks.md lists what was found for other models."
    )
    allowed = max(COPIES.get(weights, 0.1), LEAK)
    # Recurrent layers that share a call round differently in other company.
    exact = allowed if recurrent_layers(model) else LEAK
    if not report.moved <= exact:
        raise LeakError(
            f"{name}: the lengths of its neighbours change a segment. In {what}, cutting the long ones moved the "
            f"logits of the short ones by {report.moved:.1e} of the largest logit (limit {exact:.0e}). {way_out}"
        )
    if not report.alone <= allowed:
        raise LeakError(
            f"{name}: {what} does not give every segment the logits that the model gives it alone. They differ by "
            f"{report.alone:.1e} of the largest logit (limit {allowed:.0e}). {way_out}"
        )


def _shown(lens: Sequence[int]) -> str:
    text = ", ".join(map(str, lens[:12]))
    return text if len(lens) <= 12 else f"{text}, ... ({len(lens)} in all)"
