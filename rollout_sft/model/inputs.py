"""Finds what the model reads besides token ids: its input adapter, tokenizer and image processor."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn
from transformers import ProcessorMixin

from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.inputs.base import InputAdapter
from rollout_sft.inputs.choose import make_adapter, reads_images
from rollout_sft.inputs.text import TextInputs
from rollout_sft.model.wrappers import base_model

logger = logging.getLogger(__name__)


def split_processor(processing_class: Any, image_processor: Any = None) -> tuple[Any, Any]:
    """Returns the tokenizer and the image processor; both may come from one processor."""
    if not isinstance(processing_class, ProcessorMixin):
        return processing_class, image_processor
    own = getattr(processing_class, "image_processor", None)
    return getattr(processing_class, "tokenizer", None), own if image_processor is None else image_processor


def look_for_unused_parameters(model: nn.Module, config: RolloutSFTConfig) -> None:
    """
    Lets DDP look for unused parameters of an image model, unless the configuration says otherwise.

    Some towers never use their last layer. With gradient checkpointing transformers would not look for it, and DDP
    would silently leave gradients unreduced. Call it before the Trainer makes its accelerator.
    """
    model_config: Any = getattr(base_model(model), "config", None)
    if model_config is not None and config.ddp_find_unused_parameters is None and reads_images(model_config):
        config.ddp_find_unused_parameters = True


def adapter_for(model: nn.Module, tokenizer: Any, image_processor: Any, config: RolloutSFTConfig) -> InputAdapter:
    """
    Makes the model's input adapter, and reserves the tokens of its dummy image in every pack.

    Args:
        model (`nn.Module`):
            The model, wrapped or not.
        tokenizer (`PreTrainedTokenizerBase`):
            The model's tokenizer.
        image_processor (`BaseImageProcessor`, *optional*):
            The model's image processor.
        config (`RolloutSFTConfig`):
            Gets the number of reserved tokens.

    Raises:
        `ValueError`: the image model is not supported, or something does not belong to it; or the dummy image takes
            all tokens of a pack.
    """
    model_config: Any = getattr(base_model(model), "config", None)
    if not hasattr(model_config, "model_type"):
        return TextInputs()
    adapter = make_adapter(model_config, tokenizer, image_processor)
    dummy = adapter.dummy()
    tokens = dummy.encoded_len if dummy is not None and config.packing else 0
    config.reserve(tokens)
    if tokens:
        logger.info(
            "every forward of %s holds an image: %d of the %d tokens of a pack are reserved for a black one that "
            "supervises nothing, which packs without an image get. Segments may have %d tokens.",
            model_config.model_type,
            tokens,
            config.global_max_length,
            config.packing_length,
        )
    return adapter
