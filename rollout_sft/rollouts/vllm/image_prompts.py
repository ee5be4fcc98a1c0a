"""Hands prompts with images to vLLM, which expands one placeholder for each image itself.

Expanded prompts would be expanded again, without a word. So a prompt goes out collapsed and its images with it, and the
ids that vLLM says it read are compared with those of the request, as for text.

Images go out resized as the model sees them: vLLM's image processor would resize with torchvision, the trainer's does
so with Pillow, and the difference is larger than what decides between two likely tokens.
"""

from __future__ import annotations

import base64
import copy
import io
from collections.abc import Mapping
from typing import Any

from PIL import Image as Pictures

from rollout_sft.inputs.base import InputAdapter
from rollout_sft.inputs.images import Image
from rollout_sft.rollouts.base import RolloutRequest

COMPARED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Image models whose rollouts by vLLM were compared with those of Hugging Face."""

ENGINE_ARGUMENTS: Mapping[str, Any] = {
    "limit_mm_per_prompt": {"video": 0},  # takes no memory for the longest video
    "mm_device_do_normalize": False,  # the engine's normalization would start with dummy weights and keep them
}
"""Arguments of the engine of an image model."""

SERVER_ARGUMENTS = (
    "--enable-scale-out",  # the route /inference/v1/generate
    *("--limit-mm-per-prompt", '{"video": 0}'),
)
"""Further command line of the server of an image model."""

_RESAMPLE = Pictures.Resampling.BICUBIC

_BAN = -1e9
"""Added to a logit; JSON has no infinity."""


def check_image_model(config: Any, tokenizer: Any, image_processor: Any) -> None:
    """
    Raises `ValueError` for an image model whose rollouts by vLLM would be wrong, or were never compared.

    Args:
        config (`PretrainedConfig`):
            Of the whole model.
        tokenizer (`PreTrainedTokenizerBase`):
            vLLM finds the places of images by the names of its tokens.
        image_processor (`BaseImageProcessor`):
            The trainer's.
    """
    _check_compared(config)
    for name, token_id in (("<|image_pad|>", config.image_token_id), ("<|video_pad|>", config.video_token_id)):
        found = tokenizer.convert_tokens_to_ids(name)
        if found != token_id:
            raise ValueError(
                f"rollout_matching.rollout_backend is vllm, which expects the model's token {token_id} under the name "
                f"{name}, but that is token {found}. Rename it, or set rollout_matching.rollout_backend: hf."
            )
    if image_processor.resample != _RESAMPLE:
        raise ValueError(
            f"rollout_matching.rollout_backend is vllm, and the image processor's resample is "
            f"{image_processor.resample}; images for vLLM are resized with {_RESAMPLE.value} (bicubic). Set it, or "
            "rollout_matching.rollout_backend: hf."
        )


def _check_compared(config: Any) -> None:
    if config.model_type not in COMPARED:
        raise ValueError(
            f"rollout_matching.rollout_backend is vllm, but vLLM's answers of {config.model_type} to prompts with "
            f"images were not compared with Hugging Face's; those of {', '.join(COMPARED)} were. Set "
            "rollout_matching.rollout_backend: hf, which works with every image model that is trained."
        )


def engine_config(config: Any) -> Any:
    """
    Returns a copy of a model's configuration with which vLLM computes what Hugging Face does.

    vLLM looks for tied weights in the part for the text, where a configuration may leave them out. Hugging Face always
    interleaves the positions of Qwen3-VL; vLLM does so where the configuration says it.
    """
    config = copy.deepcopy(config)
    text = config.get_text_config()
    if text is not config:
        text.tie_word_embeddings = config.tie_word_embeddings
        if config.model_type == "qwen3_vl":
            text.rope_parameters = {**text.rope_parameters, "mrope_interleaved": True}
    return config


def banned(inputs: InputAdapter) -> dict[str, Any]:
    """Returns the sampling parameter that makes the tokens of media impossible; `{}` for text."""
    return {"logit_bias": dict.fromkeys(sorted(inputs.media_token_ids), _BAN)} if inputs.media_token_ids else {}


def prompt(request: RolloutRequest, inputs: InputAdapter) -> Mapping[str, Any]:
    """Returns what `vllm.LLM.generate` takes as the prompt of a request."""
    ids = {"prompt_token_ids": inputs.collapse(request.prompt_ids, request.images)}
    if not request.images:
        return ids
    return {**ids, "multi_modal_data": {"image": [_seen(image, inputs) for image in request.images]}}


def content_parts(request: RolloutRequest, inputs: InputAdapter) -> list[dict[str, str]]:
    """Returns the images of a request as a server's route `/inference/v1/generate` takes them."""
    return [{"type": "image_url", "url": _data_url(_seen(image, inputs))} for image in request.images]


def _seen(image: Image, inputs: InputAdapter) -> Pictures.Image:
    """Decodes and resizes an image as the trainer's image processor does; vLLM's leaves this size as it is."""
    height, width = inputs.seen_size(image)
    return image.pixels().resize((width, height), _RESAMPLE)


def _data_url(picture: Pictures.Image) -> str:
    """Writes a picture as PNG, which loses nothing."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
