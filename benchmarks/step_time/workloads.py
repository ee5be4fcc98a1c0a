"""Models and fixed rollouts for `benchmarks.step_time`: only their lengths matter, so their tokens are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rollout_sft.inputs.segment import Segment
from rollout_sft.targets.base import Target


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Windows of `gradient_accumulation_steps` x `batch_size` segments for packs of `packing_length` tokens."""

    name: str
    packing_length: int
    gradient_accumulation_steps: int
    batch_size: int
    lengths: Callable[[np.random.Generator, int], np.ndarray]
    supervised: float
    """Share of each segment's tokens that is supervised: its last ones."""

    @property
    def window(self) -> int:
        return self.batch_size * self.gradient_accumulation_steps


def lognormal(mean: float, sigma: float, cap: int) -> Callable[[np.random.Generator, int], np.ndarray]:
    """Lengths whose mean is about `mean` (the cap lowers it), none above `cap`."""
    mu = np.log(mean) - sigma**2 / 2
    return lambda rng, n: np.clip(rng.lognormal(mu, sigma, n).round(), 16, cap).astype(int)


def bimodal(short: float, long: float, cap: int) -> Callable[[np.random.Generator, int], np.ndarray]:
    """Three short ones for each long one."""

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        mean = np.where(rng.random(n) < 0.25, long, short)
        return np.clip((mean * rng.lognormal(-0.02, 0.2, n)).round(), 16, cap).astype(int)

    return draw


def digits(rng: np.random.Generator, n: int) -> np.ndarray:
    """Lengths of the quickstart's training samples."""
    from examples.digits.data import DigitsDataset
    from examples.digits.tokenizer import build_digits_tokenizer
    from rollout_sft.config.arguments import RolloutSFTConfig
    from rollout_sft.targets.loading import make_target_builder

    builder = make_target_builder(
        build_digits_tokenizer(), RolloutSFTConfig(output_dir="unused", global_max_length=512, use_cpu=True)
    )
    samples = DigitsDataset("train", n, seed=3)
    return np.array([builder.build_reference(samples[i]).segment.encoded_len for i in range(n)])


def workloads(scale: int) -> list[Workload]:
    """
    Shapes of rollouts, with every length divided by `scale`.

    Short rollouts in small and in large micro-batches; the shape of a real log (96 segments of about 2438 tokens, 190
    of them supervised, cap 14000); and one long rollout for three short ones.
    """
    cap = 16384 // scale
    real = 14000 // scale
    return [
        *(
            Workload(
                name=f"short rollouts, {batch} at a time",
                packing_length=cap,
                gradient_accumulation_steps=16,
                batch_size=batch,
                lengths=lognormal(600 / scale, 0.8, cap),
                supervised=0.5,
            )
            for batch in (1, 8)
        ),
        Workload(
            name="a real log's shape",
            packing_length=real,
            gradient_accumulation_steps=24,
            batch_size=4,
            lengths=lognormal(2438 / scale, 0.35, real),
            supervised=190 / 2438,
        ),
        Workload(
            name="bimodal",
            packing_length=cap,
            gradient_accumulation_steps=16,
            batch_size=4,
            lengths=bimodal(400 / scale, 5000 / scale, cap),
            supervised=0.5,
        ),
    ]


QUICKSTART = Workload(
    name="quickstart's digits",
    packing_length=512,
    gradient_accumulation_steps=8,
    batch_size=2,
    lengths=digits,
    supervised=0.4,
)

QWEN3 = {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
SHAPES = {
    "quickstart": {
        "vocab_size": 96,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "intermediate_size": 256,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
    },
    "0.6b": {"vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, **QWEN3},
    "1.7b": {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, **QWEN3},
}


def make_model(shape: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A Qwen3 of that shape with random weights, drawn where they stay."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3", max_position_embeddings=32768, tie_word_embeddings=True, **SHAPES[shape])
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype).to(device)


def useful_flops(model: PreTrainedModel, segments: list[Segment]) -> float:
    """Operations that the segments alone need, there and back: no padding, no dummy, attention halved by causality."""
    config = model.config
    head = config.vocab_size * config.hidden_size
    body = sum(p.numel() for p in model.parameters()) - head  # the tied embedding costs a look-up
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    tokens = sum(s.encoded_len for s in segments)
    supervised = sum(s.weight_sum for s in segments)
    squares = sum(s.encoded_len**2 for s in segments)
    return 6.0 * (tokens * body + supervised * head + squares * width)


class FixedRollouts(Dataset[dict[str, object]]):
    """A data set and target builder in one: sample i is segment i."""

    def __init__(self, workload: Workload, windows: int, vocabulary: int):
        rng = np.random.default_rng(0)
        self.segments = [
            self._segment(int(n), workload.supervised, rng, vocabulary, i)
            for i, n in enumerate(workload.lengths(rng, windows * workload.window))
        ]

    @staticmethod
    def _segment(length: int, supervised: float, rng: np.random.Generator, vocabulary: int, number: int) -> Segment:
        ids = rng.integers(vocabulary, size=length)
        trained = min(length - 1, max(1, round(length * supervised)))
        weights = np.zeros(length)
        weights[length - 1 - trained : -1] = 1.0
        targets = np.append(ids[1:], 0)
        return Segment.from_lists(ids.tolist(), targets.tolist(), weights.tolist(), sample_id=str(number))

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"id": index, "prompt_ids": [0]}

    def build_reference(self, sample: dict[str, object]) -> Target:
        return Target(segment=self.segments[int(str(sample["id"]))], counters={})

    build = score = build_reference  # every sample is its reference: nothing is generated or scored here
