"""Models and fixed rollouts for `benchmarks.step_time`: only their lengths matter, so their tokens are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from examples.digits.images import build_image_tokenizer
from rollout_sft.config.sections import ModelSpec
from rollout_sft.inputs.base import InputAdapter
from rollout_sft.inputs.choose import make_adapter
from rollout_sft.inputs.images import Image
from rollout_sft.inputs.segment import Segment
from rollout_sft.inputs.text import TextInputs
from rollout_sft.model.image_processor import load_image_processor
from rollout_sft.model.loading import load_config
from rollout_sft.targets.base import Target

TOKENIZER = "examples.digits.images:build_image_tokenizer"


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Windows of `gradient_accumulation_steps` x `batch_size` segments for packs of `packing_length` tokens."""

    name: str
    packing_length: int
    gradient_accumulation_steps: int
    batch_size: int
    lengths: Callable[[np.random.Generator, int], np.ndarray]
    supervised: float
    """Share of each segment's tokens that is supervised: its last ones. Those of an image are not counted."""
    images: tuple[tuple[int, int], ...] = ()
    """Heights and widths, in turns; each segment begins with an image of one of them, and `lengths` are of its text."""

    @property
    def window(self) -> int:
        return self.batch_size * self.gradient_accumulation_steps


def lognormal(mean: float, sigma: float, cap: int) -> Callable[[np.random.Generator, int], np.ndarray]:
    """Returns lengths whose mean is about `mean` (the cap lowers it), none above `cap`."""
    mu = np.log(mean) - sigma**2 / 2
    return lambda rng, n: np.clip(rng.lognormal(mu, sigma, n).round(), 16, cap).astype(int)


def bimodal(short: float, long: float, cap: int) -> Callable[[np.random.Generator, int], np.ndarray]:
    """Returns lengths around `short`, and around `long` for one in four."""

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        mean = np.where(rng.random(n) < 0.25, long, short)
        return np.clip((mean * rng.lognormal(-0.02, 0.2, n)).round(), 16, cap).astype(int)

    return draw


def digits(rng: np.random.Generator, n: int) -> np.ndarray:
    """Returns the lengths of digits samples with up to 12 on a canvas; the quickstart's hold up to 10."""
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


def image_workload(scale: int) -> Workload:
    """
    The real log once more, with what its prompts were: about 2100 tokens of one image, then text.

    Images of 1472 x 1472 pixels have 2116 tokens of 32 x 32 pixels; every number of tokens is divided by `scale`.
    """
    sides = [(1472, 1472), (1280, 1696), (1696, 1280), (1088, 1984)]
    return Workload(
        name="images at a real log's lengths",
        packing_length=14000 // scale,
        gradient_accumulation_steps=24,
        batch_size=4,
        lengths=lognormal(330 / scale, 0.6, 14000 // scale // 2),
        supervised=190 / 330,
        images=tuple((round(h / scale**0.5), round(w / scale**0.5)) for h, w in sides),
    )


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
    "110m": {
        "vocab_size": 32768,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "head_dim": 64,
        "intermediate_size": 2048,
    },
    "0.6b": {"vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, **QWEN3},
    "1.7b": {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, **QWEN3},
}


VL_SHAPES = {
    "tiny images": {
        "text": SHAPES["tiny"],
        "vision": {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64},
        "deepstack": [0],
    },
    "2b images": {
        "text": SHAPES["1.7b"],
        "vision": {
            "depth": 24,
            "hidden_size": 1024,
            "num_heads": 16,
            "intermediate_size": 4096,
            "out_hidden_size": 2048,
        },
        "deepstack": [5, 11, 17],
    },
}
"""Qwen3-VL: a token of 32 x 32 pixels; the second is that of the 2B model."""


def model_spec(shape: str) -> ModelSpec:
    """Makes the section `model` of a Qwen3 or Qwen3-VL of that shape."""
    common = {"max_position_embeddings": 32768, "tie_word_embeddings": True}
    config: dict[str, Any] = {"model_type": "qwen3", **common, **SHAPES.get(shape, {})}
    if shape in VL_SHAPES:
        parts = VL_SHAPES[shape]
        text = {**common, **parts["text"]}
        half = text["head_dim"] // 2  # 24, 20 and 20 of 64, as in the checkpoint
        section = [half - 2 * (half * 5 // 16), half * 5 // 16, half * 5 // 16]
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": section}
        vision = {"patch_size": 16, "deepstack_visual_indexes": parts["deepstack"], **parts["vision"]}
        config = {"model_type": "qwen3_vl", "tie_word_embeddings": True, "text_config": text, "vision_config": vision}
    return ModelSpec(config=config, tokenizer_name_or_path=TOKENIZER)


ModelInputs = tuple[InputAdapter, Any]
"""The input adapter of a model, and its image processor."""
TEXT: ModelInputs = (TextInputs(), None)


def inputs_of(shape: str) -> ModelInputs:
    """Makes what turns samples into the inputs of a model of that shape."""
    spec = model_spec(shape)
    config = load_config(spec, build_image_tokenizer())
    image_processor = load_image_processor(spec, config)
    return make_adapter(config, build_image_tokenizer(), image_processor), image_processor


def make_model(shape: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Makes a Qwen3 or Qwen3-VL of that shape, with random weights drawn on the device."""
    torch.manual_seed(0)
    config = load_config(model_spec(shape), build_image_tokenizer())
    auto = AutoModelForImageTextToText if shape in VL_SHAPES else AutoModelForCausalLM
    with device:
        return auto.from_config(config, dtype=dtype).to(device)


def useful_flops(model: PreTrainedModel, segments: list[Segment], adapter: InputAdapter) -> float:
    """Counts the operations of the segments alone, forward and backward: no padding, no dummy, causal attention."""
    config = model.config.get_text_config()
    head = config.vocab_size * config.hidden_size
    tower = sum(p.numel() for name, p in model.named_parameters() if ".visual." in name)
    body = sum(p.numel() for p in model.parameters()) - head - tower  # the tied embedding costs a look-up
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    tokens = sum(s.encoded_len for s in segments)
    supervised = sum(s.weight_sum for s in segments)
    squares = sum(s.encoded_len**2 for s in segments)
    flops = 6.0 * (tokens * body + supervised * head + squares * width)
    if not tower:
        return flops
    vision = model.config.vision_config
    patches = [adapter.image_tokens(i) * vision.spatial_merge_size**2 for s in segments for i in s.images]
    both_ways = 12.0 * sum(n**2 for n in patches) * vision.depth * vision.hidden_size
    return flops + 6.0 * sum(patches) * tower + both_ways


class FixedRollouts(Dataset[dict[str, object]]):
    """Serves as data set and target builder: sample i is segment i."""

    def __init__(self, workload: Workload, windows: int, vocabulary: int, inputs: ModelInputs = TEXT):
        rng = np.random.default_rng(0)
        self.adapter, self.image_processor = inputs
        self._lowest = len(build_image_tokenizer()) if workload.images else 0  # those below may stand for images
        self._vocabulary = vocabulary
        self.segments = [
            self._segment(int(n), workload, rng, i)
            for i, n in enumerate(workload.lengths(rng, windows * workload.window))
        ]

    def _segment(self, length: int, workload: Workload, rng: np.random.Generator, number: int) -> Segment:
        ids = rng.integers(self._lowest, self._vocabulary, size=length)
        trained = min(length - 1, max(1, round(length * workload.supervised)))
        images = self._images(workload, rng, number)
        before = self.adapter.expand([self.adapter.image_token_id], images) if images else []
        weights = np.zeros(len(before) + length)
        weights[len(weights) - 1 - trained : -1] = 1.0
        ids = np.append(np.array(before, dtype=ids.dtype), ids)
        targets = np.append(ids[1:], 0)
        made = Segment.from_lists(ids.tolist(), targets.tolist(), weights.tolist(), sample_id=str(number))
        return replace(made, images=images)

    @staticmethod
    def _images(workload: Workload, rng: np.random.Generator, number: int) -> tuple[Image, ...]:
        if not workload.images:
            return ()
        height, width = workload.images[number % len(workload.images)]
        pixels = rng.integers(256, size=(height, width, 3), dtype=np.uint8)
        return (Image(source=pixels, height=height, width=width),)

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"id": index, "prompt_ids": [0]}

    def build_reference(self, sample: dict[str, object]) -> Target:
        return Target(segment=self.segments[int(str(sample["id"]))], counters={})

    build = score = build_reference  # every sample is its reference: nothing is generated or scored here
