"""Chooses the input adapter of a model by its type, and refuses image models for which there is none, with the reason.

text                         every model without a vision tower
Qwen-VL                      qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_5
"""

from __future__ import annotations

from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from rollout_sft.inputs import plain_vision
from rollout_sft.inputs.base import InputAdapter
from rollout_sft.inputs.qwen_vl import QwenVLInputs
from rollout_sft.inputs.text import TextInputs

QWEN_VL = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
PLAIN_VISION = {
    "internvl": plain_vision.internvl,
    "llava_onevision": plain_vision.llava_onevision,
    "smolvlm": plain_vision.smolvlm,
    "mistral3": plain_vision.mistral3,
}
IMAGE_MODELS = (*QWEN_VL, *PLAIN_VISION)
_BOTH_WAYS = (
    "its image tokens attend to each other both ways, and its sliding layers look the blocks up at positions that "
    "packing changes"
)
_REASONS = {name: _BOTH_WAYS for name in ("gemma3", "gemma3n", "gemma4", "gemma4_unified", "paligemma", "shieldgemma2")}


def make_adapter(config: Any, tokenizer: Any, image_processor: Any = None) -> InputAdapter:
    """
    Makes the adapter for a model.

    Args:
        config (`PretrainedConfig`):
            Of the whole model.
        tokenizer (`PreTrainedTokenizerBase`):
            Its image token must be the model's.
        image_processor (`BaseImageProcessor`, *optional*):
            Makes the pixels; an image model needs one, and a text model takes none.

    Raises:
        `ValueError`: there is no adapter for this image model, it lacks an image processor, or model, tokenizer and
            image processor disagree.
    """
    name = config.model_type
    reason = why_refused(config)
    if reason is not None:
        raise ValueError(reason)
    if name not in IMAGE_MODELS:
        if image_processor is not None:
            raise ValueError(
                f"there is an image processor ({type(image_processor).__name__}), but {name} reads text alone; leave "
                "it out, or load the image model (AutoModelForImageTextToText)."
            )
        return TextInputs()
    if image_processor is None:
        raise ValueError(
            f"{name} reads images and there is no image processor; pass image_processor=, or the checkpoint's whole "
            "processor as processing_class (AutoProcessor.from_pretrained(name))."
        )
    _check_image_token(config, tokenizer)
    if name in PLAIN_VISION:
        return PLAIN_VISION[name](config, tokenizer, image_processor)
    _check_same(config, image_processor, "patch_size", config.vision_config.patch_size)
    _check_same(config, image_processor, "merge_size", config.vision_config.spatial_merge_size)
    return QwenVLInputs(config, image_processor)


def reads_images(config: Any) -> bool:
    """Says whether a model's configuration has a part that reads images or another medium."""
    media = ("vision_config", "audio_config", "thinker_config")
    known = getattr(config, "model_type", None) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return known or any(getattr(config, part, None) is not None for part in media)


def why_refused(config: Any) -> str | None:
    """Says why there is no adapter for this model; returns None for text models and those with an adapter."""
    name: str = getattr(config, "model_type", "")
    if name in IMAGE_MODELS or not reads_images(config):
        return None
    because = _REASONS.get(name, "how it joins the images of several segments was never compared with each alone")
    return (
        f"{name} is refused: it reads images, and {because}. Use one of {', '.join(IMAGE_MODELS)}, or a text model "
        "(its text half alone has a model type of its own, such as gemma3_text)."
    )


def _check_image_token(config: Any, tokenizer: Any) -> None:
    theirs = getattr(tokenizer, "image_token_id", None)
    if theirs is not None and theirs != config.image_token_id:
        raise ValueError(
            f"the tokenizer's image token is {theirs} and the model's is {config.image_token_id}; images would have "
            "no place. Use the tokenizer that belongs to the model, or set image_token_id in its configuration."
        )
    if config.image_token_id >= len(tokenizer):
        raise ValueError(
            f"the model's image token is {config.image_token_id}, but the tokenizer has {len(tokenizer)} tokens, so no "
            "prompt can hold it. Use the tokenizer that belongs to the model, or set image_token_id in its "
            "configuration."
        )


def _check_same(config: Any, image_processor: Any, name: str, wanted: int) -> None:
    given = getattr(image_processor, name, None)
    if given != wanted:
        raise ValueError(
            f"{config.model_type} needs an image processor with {name} {wanted}, but {type(image_processor).__name__} "
            f"has {given}; load the one of the same checkpoint, or set {name}={wanted}."
        )
