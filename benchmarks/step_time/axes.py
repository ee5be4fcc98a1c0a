"""What `benchmarks.step_time.growth` lets grow, and the trainers that it compares at each value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from transformers import Trainer, TrainerCallback

from benchmarks.step_time.answers import MadeAnswers, box_tokenizer
from benchmarks.step_time.timed import common_arguments, plain_trainer, rollout_trainer, tiny_model
from benchmarks.step_time.variants import NoRollouts
from benchmarks.step_time.workloads import FixedRollouts, Workload, lognormal
from examples.digits.images import build_image_tokenizer
from rollout_sft import RolloutSFTTrainer
from rollout_sft.inputs.segment import Segment
from rollout_sft.targets.objects.builder import ObjectsTargetBuilder

PLAIN = "plain Trainer"
BATCH = 8
"""Segments of a micro-batch."""
STEPS = 5
"""Optimizer steps at each value; the first warms up."""
WORKLOAD = Workload(
    name="growth",
    packing_length=512,
    gradient_accumulation_steps=4,
    batch_size=BATCH,
    lengths=lognormal(44, 0.6, 512),
    supervised=0.5,
)
VOCABULARY = 512

Trainers = dict[str, Callable[[], Trainer]]
"""Makes each trainer that is compared at one value."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One number that grows."""

    name: str
    fixed: str
    values: Sequence[int]
    trainers: Callable[[int], Trainers]


def window_trainers(workload: Workload, vocabulary: int = VOCABULARY) -> Trainers:
    """Returns the plain Trainer and scope `window` with two objectives, on the same segments."""
    data = FixedRollouts(workload, 1, vocabulary)
    return {
        PLAIN: partial(_plain, data.segments, workload, vocabulary),
        "window, dense": partial(_ours, data, workload, vocabulary, post_rollout_pack_scope="window"),
        "window, balanced": partial(
            _ours, data, workload, vocabulary, post_rollout_pack_scope="window", pack_objective="balanced"
        ),
    }


def window_size(segments: int) -> Trainers:
    """Windows of more micro-steps."""
    return window_trainers(replace(WORKLOAD, gradient_accumulation_steps=segments // BATCH))


def length(tokens: int) -> Trainers:
    """Segments of up to `tokens` tokens, in packs of up to eight of them."""

    def lengths(rng: np.random.Generator, n: int) -> np.ndarray:
        return rng.integers(tokens * 3 // 4, tokens + 1, size=n)

    return window_trainers(
        replace(WORKLOAD, gradient_accumulation_steps=1, packing_length=BATCH * tokens, lengths=lengths)
    )


def vocabulary(tokens: int) -> Trainers:
    """Models with more tokens to choose from."""
    return window_trainers(WORKLOAD, tokens)


def waiting(segments: int) -> Trainers:
    """Carry buffers in which `segments` wait. A micro-step adds about as many tokens as it takes."""

    def lengths(rng: np.random.Generator, n: int) -> np.ndarray:
        drawn = WORKLOAD.lengths(rng, n)
        return (drawn * (WORKLOAD.packing_length / BATCH - 0.5) / drawn.mean()).astype(int)

    workload = replace(WORKLOAD, lengths=lengths)
    data = FixedRollouts(workload, 1, VOCABULARY)
    filling = FixedRollouts(replace(workload, gradient_accumulation_steps=segments // BATCH), 1, VOCABULARY).segments

    def micro(policy: str) -> Trainer:
        room = segments + STEPS * workload.window
        trainer = _ours(data, workload, VOCABULARY, pack_policy=policy, packing_buffer=room)
        trainer.add_callback(Fill(trainer, filling))
        return trainer

    return {
        PLAIN: partial(_plain, data.segments, workload, VOCABULARY),
        **{f"micro, {policy}": partial(micro, policy) for policy in ("binpacking", "fifo", "optimal")},
    }


class Fill(TrainerCallback):
    """Fills the carry buffer before the first step, and checks after the last one that about as many wait."""

    def __init__(self, trainer: RolloutSFTTrainer, segments: list[Segment]):
        self.trainer, self.segments = trainer, segments

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        for segment in self.segments:
            self.trainer.schedule.buffer.add(segment, segment.encoded_len)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        left = len(self.trainer.schedule.buffer)
        assert abs(left - len(self.segments)) <= max(8, len(self.segments) / 3), (left, len(self.segments))


def objects(number: int) -> Trainers:
    """Rollouts whose answers hold `number` objects, with as many true ones; parsed, matched and built."""
    tokenizer = box_tokenizer()
    data = MadeAnswers(tokenizer, samples=BATCH, objects=number)
    workload = replace(WORKLOAD, gradient_accumulation_steps=1, packing_length=BATCH * (32 * number + 32))
    builder = ObjectsTargetBuilder(tokenizer=tokenizer, prefix_supervision="expert")
    references = [builder.build_reference(sample).segment for sample in data]

    def ours() -> Trainer:
        arguments = {
            **_arguments(workload),
            **_packing(workload),
            "post_rollout_pack_scope": "window",
            "decoding": {"max_new_tokens": 12 * number + 2},
        }
        return rollout_trainer(tiny_model(len(tokenizer)), tokenizer, data, arguments, builder=builder, backend=data)

    return {PLAIN: partial(_plain, references, workload, len(tokenizer)), "window, dense": ours}


def _plain(segments: Sequence[Segment], workload: Workload, vocabulary: int) -> Trainer:
    return plain_trainer(tiny_model(vocabulary), segments, _arguments(workload))


def _ours(data: FixedRollouts, workload: Workload, vocabulary: int, **settings: Any) -> RolloutSFTTrainer:
    arguments = {**_arguments(workload), **_packing(workload), "reference_fraction": 1.0, **settings}
    return rollout_trainer(
        tiny_model(vocabulary), build_image_tokenizer(), data, arguments, builder=data, backend=NoRollouts()
    )


def _arguments(workload: Workload) -> dict[str, Any]:
    return common_arguments(
        batch_size=workload.batch_size, micro_steps=workload.gradient_accumulation_steps, steps=STEPS
    )


def _packing(workload: Workload) -> dict[str, Any]:
    return {
        "global_max_length": workload.packing_length,
        "idle_micro_steps": "skip",
        "on_infeasible": "extra_steps",
        "packing_min_fill_ratio": 0.0,
    }


AXES = (
    Axis(
        name="segments of a window",
        fixed="8 segments of 44 tokens on average per micro-step, packing_length 512, vocabulary 512",
        values=[8 * 2**k for k in range(9)],
        trainers=window_size,
    ),
    Axis(
        name="tokens of a segment",
        fixed="8 segments in one micro-step, packing_length 8 times the longest, vocabulary 512",
        values=[64 * 2**k for k in range(7)],
        trainers=length,
    ),
    Axis(
        name="tokens of the vocabulary",
        fixed="32 segments of 44 tokens on average in 4 micro-steps, packing_length 512",
        values=[512 * 4**k for k in range(5)],
        trainers=vocabulary,
    ),
    Axis(
        name="waiting segments",
        fixed="scope micro, 32 segments of 63 tokens on average in 4 micro-steps, packing_length 512",
        values=[16 * 4**k for k in range(5)],
        trainers=waiting,
    ),
    Axis(
        name="objects of an answer",
        fixed="8 rollouts of 12 tokens per object in one micro-step, parsed, matched and built with "
        "prefix_supervision expert; the plain Trainer gets segments of the same kind, made beforehand",
        values=[8 * 2**k for k in range(6)],
        trainers=objects,
    ),
)
