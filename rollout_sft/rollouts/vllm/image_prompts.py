"""Hands prompts with images to vLLM, which expands one placeholder for each image itself.

Expanded prompts would be expanded again, without a word. So a prompt goes out collapsed and its images with it, and the
ids that vLLM says it read are compared with those of the request, as for text.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

from rollout_sft.inputs.base import InputAdapter
from rollout_sft.inputs.images import Image
from rollout_sft.rollouts.base import RolloutRequest

COMPARED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Image models whose rollouts by vLLM were compared with those of Hugging Face."""

_BAN = -1e9
"""Added to a logit; JSON has no infinity."""


def check_image_model(config: Any) -> None:
    """Raises `ValueError` for an image model whose rollouts by vLLM were never compared with Hugging Face's."""
    if config.model_type not in COMPARED:
        raise ValueError(
            f"rollout_matching.rollout_backend is vllm, but vLLM's answers of {config.model_type} to prompts with "
            f"images were not compared with Hugging Face's; those of {', '.join(COMPARED)} were. Set "
            "rollout_matching.rollout_backend: hf, which works with every image model that is trained."
        )


def banned(inputs: InputAdapter) -> dict[str, Any]:
    """Returns the sampling parameter that makes the tokens of media impossible; `{}` for text."""
    return {"logit_bias": dict.fromkeys(sorted(inputs.media_token_ids), _BAN)} if inputs.media_token_ids else {}


def prompt(request: RolloutRequest, inputs: InputAdapter) -> Mapping[str, Any]:
    """Returns what `vllm.LLM.generate` takes as the prompt of a request."""
    ids = {"prompt_token_ids": inputs.collapse(request.prompt_ids, request.images)}
    if not request.images:
        return ids
    return {**ids, "multi_modal_data": {"image": [image.pixels() for image in request.images]}}


def content_parts(request: RolloutRequest) -> list[dict[str, str]]:
    """Returns the images of a request as a server's route `/inference/v1/generate` takes them."""
    return [{"type": "image_url", "url": _data_url(image)} for image in request.images]


def _data_url(image: Image) -> str:
    """Writes an image as PNG, which loses nothing."""
    buffer = io.BytesIO()
    image.pixels().save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
