"""Estimates what a segment costs, by which ranks and packs are levelled: from the model's shape, or as configured.

A cost counts multiplications of a forward: for every token, for every pair of a token and an earlier one, for every
position whose logits the loss reads, and in the image tower for every patch and every pair of patches of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PretrainedConfig

from packsched import SegmentCost
from rollout_sft.config.segment_cost import SegmentCostConfig
from rollout_sft.inputs.images import Image
from rollout_sft.inputs.segment import SUPERVISED, Segment

SizeOf = Callable[[Image], tuple[int, int]]


class ModelCost:
    """
    Computes the cost of segments; the same on every rank, from sizes alone.

    Args:
        weights ([`~rollout_sft.config.segment_cost.SegmentCostConfig`]):
            What is configured; what is 0 there is taken from `model` if all of it is.
        model (`PretrainedConfig`):
            The model's configuration.
        seen_size (`Callable[[Image], tuple[int, int]]`):
            Returns the pixels that the model sees of an image; see
            [`~rollout_sft.inputs.base.InputAdapter`].

    Raises:
        `ValueError`: the model's configuration does not name its sizes, and no costs are configured.
    """

    def __init__(self, weights: SegmentCostConfig, model: PretrainedConfig, seen_size: SizeOf):
        weights = weights if weights.token else weights_of_model(model)
        self.weights = weights
        self._text = SegmentCost(linear=weights.token, quadratic=weights.pair)
        self._image = SegmentCost(linear=weights.patch, quadratic=weights.patch_pair)
        self._patch = _patch_size(model)
        self._seen_size = seen_size

    def __call__(self, segment: Segment) -> int:
        """Returns the cost of one segment."""
        supervised = self.weights.supervised * segment.indices[SUPERVISED].numel()
        return self._text(segment.encoded_len) + supervised + sum(map(self._of_image, segment.images))

    def _of_image(self, image: Image) -> int:
        height, width = self._seen_size(image)
        return self._image(-(-height // self._patch) * -(-width // self._patch))


def weights_of_model(model: PretrainedConfig) -> SegmentCostConfig:
    """Counts the multiplications of the model; sizes that it does not name are those of a classic transformer."""
    text = model.get_text_config()
    width, depth = getattr(text, "hidden_size", None), getattr(text, "num_hidden_layers", None)
    if not width or not depth:
        raise ValueError(
            f"the configuration of {model.model_type} names no hidden_size and num_hidden_layers, from which the cost "
            "of a segment would follow; set rollout_matching.segment_cost: {token: ..., pair: ...}."
        )
    heads = getattr(text, "num_attention_heads", None) or 1
    head = getattr(text, "head_dim", None) or width // heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    inner = getattr(text, "intermediate_size", None) or 4 * width
    experts = getattr(text, "num_experts_per_tok", None)
    if experts:
        inner = experts * (getattr(text, "moe_intermediate_size", None) or inner)
    # A pair takes two multiplications per channel, for its score and its value; causal attention has half the pairs.
    return SegmentCostConfig(
        token=depth * (2 * width * (heads + groups) * head + 3 * width * inner),
        pair=depth * heads * head,
        supervised=width * (getattr(text, "vocab_size", None) or 0),
        **_tower(model),
    )


def _tower(model: PretrainedConfig) -> dict[str, int]:
    tower = getattr(model, "vision_config", None)
    width = getattr(tower, "hidden_size", None)
    depth = getattr(tower, "depth", None) or getattr(tower, "num_hidden_layers", None)
    if not width or not depth:
        return {}
    inner = getattr(tower, "intermediate_size", None) or 4 * width
    # Two projections in the feed-forward part, and every patch of an image attends to every other.
    return {"patch": depth * (4 * width * width + 2 * width * inner), "patch_pair": 2 * depth * width}


def _patch_size(model: PretrainedConfig) -> int:
    size: Any = getattr(getattr(model, "vision_config", None), "patch_size", None) or 1
    return int(size if isinstance(size, int) else size[0])
