"""The lengths and the models of `benchmarks.peers`, and TRL's spelling of the segments."""

from __future__ import annotations

from collections.abc import Callable

import datasets
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.step_time.workloads import QWEN3, FixedRollouts, Workload
from benchmarks.step_time.workloads import workloads as step_time_workloads
from rollout_sft.inputs.segment import Segment

# "cpu" is a Qwen3-0.6B of a quarter of its width and a seventh of its depth. With a vocabulary of 4,800 the logits take
# the share of the operations that they take there, a quarter; with 32,000 they take two thirds.
SHAPES = {
    "tiny": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 64,
    },
    "cpu": {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "intermediate_size": 768,
    },
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072, **QWEN3},
    "1.7b": {"hidden_size": 2048, "intermediate_size": 6144, **QWEN3},
}


def spiked(median: float, sigma: float, spike: int, share: float) -> Callable[[np.random.Generator, int], np.ndarray]:
    """Log-normal lengths of that median, and a share of them as long as the spike; none is longer."""

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        lengths = rng.lognormal(np.log(median), sigma, n).round().clip(4, spike)
        return np.where(rng.random(n) < share, spike, lengths).astype(int)

    return draw


def workloads(scale: int) -> list[Workload]:
    """
    What is trained, with every length divided by `scale`.

    The lengths of TRL's issue 6092 (median 700, sigma .9, a tenth at 4096) with 8 % of the tokens supervised; short
    rollouts; one long rollout for three short ones; and the shape of a real log. The last three are those of
    `benchmarks.step_time`.
    """
    by_name = {w.name: w for w in step_time_workloads(scale)}
    issue = Workload(
        name="TRL #6092",
        packing_length=16384 // scale,
        gradient_accumulation_steps=8,
        batch_size=8,
        lengths=spiked(700 / scale, 0.9, 4096 // scale, 0.1),
        supervised=0.08,
    )
    return [issue, by_name["short rollouts, 8 at a time"], by_name["bimodal"], by_name["a real log's shape"]]


def make_model(shape: str, vocabulary: int, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Makes a Qwen3 of that shape with random weights, the same on every call."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen3", max_position_embeddings=32768, tie_word_embeddings=True, vocab_size=vocabulary, **SHAPES[shape]
    )
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype).to(device)


def window_of(workload: Workload, vocabulary: int, number: int) -> FixedRollouts:
    """Draws the window of one round; it is data set and target builder of `rollout_sft`."""
    data = FixedRollouts(workload, number + 1, vocabulary)
    data.segments = data.segments[-workload.window :]
    return data


def as_dataset(segments: list[Segment]) -> datasets.Dataset:
    """Writes the segments as TRL reads them: a label stands at the token itself, not at the one that predicts it."""
    rows = []
    for segment in segments:
        ids = segment.input_ids.tolist()
        trained = [False, *(segment.weights[:-1] > 0).tolist()]
        rows.append({"input_ids": ids, "labels": [i if t else -100 for i, t in zip(ids, trained, strict=True)]})
    return datasets.Dataset.from_list(rows)
