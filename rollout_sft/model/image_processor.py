"""Loads the image processor of a checkpoint, or makes the one that fits a model built from its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rollout_sft.config.sections import ModelSpec
from rollout_sft.inputs.choose import IMAGE_MODELS, QWEN_VL
from rollout_sft.model.adapters import base_of


def load_image_processor(spec: ModelSpec, config: Any) -> Any:
    """
    Loads the image processor of an image model. It works on the CPU with Pillow and needs no torchvision.

    Args:
        spec (`ModelSpec`):
            Names the checkpoint, and limits the pixels of an image.
        config (`PretrainedConfig`):
            The configuration of the model.

    Returns:
        `BaseImageProcessor` or `None`: the image processor; None for a model of text and for one that is refused.

    Raises:
        `ValueError`: the model type has no limits of pixels, or the limits contradict each other.
    """
    model_type = config.model_type
    limits = {"min_pixels": spec.min_pixels, "max_pixels": spec.max_pixels}
    given = {key: value for key, value in limits.items() if value is not None}
    if model_type not in QWEN_VL and given:
        raise ValueError(
            f"model.{next(iter(given))} is {next(iter(given.values()))}, but only {', '.join(QWEN_VL)} take it, and "
            f"this model is a {model_type}. Remove it."
        )
    if model_type not in IMAGE_MODELS:
        return None
    if spec.model_name_or_path is None:
        processor = _make(config)
    else:
        name = spec.model_name_or_path
        own = (Path(name) / "preprocessor_config.json").is_file()  # a run saves it beside an adapter too
        processor = AutoImageProcessor.from_pretrained(name if own else base_of(name), backend="pil")
    if given:
        names = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}  # an old name for both: they are no edges
        processor.size = {**dict(processor.size), **{names[key]: value for key, value in given.items()}}
        _check_limits(processor)
    return processor


def _check_limits(processor: Any) -> None:
    fewest, most = processor.size["shortest_edge"], processor.size["longest_edge"]
    token = (processor.patch_size * processor.merge_size) ** 2
    if fewest > most or most < token:
        raise ValueError(
            f"an image may have {fewest} (model.min_pixels) to {most} pixels (model.max_pixels), and a token takes "
            f"{token}; give min_pixels <= max_pixels and max_pixels >= {token}."
        )


def _make(config: Any) -> Any:
    """An image is made larger only as far as one token needs."""
    vision = config.vision_config
    token = vision.patch_size * vision.spatial_merge_size
    qwen3 = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "max_pixels": 2**24}  # as in its checkpoints
    fields: dict[str, Any] = qwen3 if config.model_type.startswith("qwen3") else {}
    return Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        min_pixels=token**2,
        **fields,
    )
