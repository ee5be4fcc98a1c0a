"""Loads the tokenizer, the configuration and the model that the section `model` names."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    set_seed,
)
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from rollout_sft.config.import_path import call_import_path, is_import_path, meant_import_path
from rollout_sft.config.quantization import read_quantization
from rollout_sft.config.sections import ModelSpec
from rollout_sft.config.shorten import shorten
from rollout_sft.inputs.choose import QWEN_VL
from rollout_sft.model.adapters import base_of
from rollout_sft.model.attention_names import reject_failing_kernel
from rollout_sft.model.config_fields import check_fields
from rollout_sft.model.weights import check_report, compare_weights, has_digests


def load_tokenizer(spec: ModelSpec) -> Tokenizer:
    """
    Loads the tokenizer of a run.

    Args:
        spec (`ModelSpec`):
            Names a directory, a hub name, or `module:function` of a function without arguments.

    Returns:
        `PreTrainedTokenizerBase`: The tokenizer.

    Raises:
        `ValueError`: the import path cannot be imported or called.
    """
    name = spec.tokenizer_name_or_path or spec.model_name_or_path
    takes = "a directory, a hub name, or module:function of a function () -> PreTrainedTokenizerBase"
    if spec.tokenizer_name_or_path is not None and (meant := meant_import_path(spec.tokenizer_name_or_path)):
        raise ValueError(f"model.tokenizer_name_or_path is {shorten(name)}; it takes {takes}. Write {meant}.")
    if name is not None and is_import_path(name):
        made: Tokenizer = call_import_path(name, key="model.tokenizer_name_or_path", takes=takes)
        return made
    return AutoTokenizer.from_pretrained(name)


def load_config(spec: ModelSpec, tokenizer: Tokenizer) -> PretrainedConfig:
    """
    Loads the configuration of the model, or makes it; needs no weights.

    Args:
        spec (`ModelSpec`):
            Gives the path or the fields.
        tokenizer (`PreTrainedTokenizerBase`):
            Gives a model that is built the size of its vocabulary, its end and padding tokens, and its image tokens.

    Raises:
        `ValueError`: a field is meant as another, or the vocabulary is smaller than the tokenizer's; an image model of
            this type cannot be built from fields, or the tokenizer lacks its tokens.
    """
    if spec.model_name_or_path is not None:
        loaded: PretrainedConfig = AutoConfig.from_pretrained(base_of(spec.model_name_or_path))
        return loaded
    fields = dict(spec.config or {})
    model_type = fields.pop("model_type")
    defaults = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(model_type), CONFIG_MAPPING, n=1)
        raise ValueError(
            f"model.config.model_type is {shorten(model_type)}, which transformers does not know; "
            f"{f'did you mean {near[0]}?' if near else 'it takes a name such as qwen3, llama or gemma3_text.'}"
        )
    plain = AutoConfig.for_model(model_type)
    check_fields(plain, fields, "model.config")
    if model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return _with_room(AutoConfig.for_model(model_type, **{**defaults, **fields}), tokenizer)
    if model_type not in QWEN_VL:
        raise ValueError(
            f"model.config builds the image models {', '.join(QWEN_VL)}, and model_type is {model_type}; save the "
            "model and its processor to a folder, and give it as model.model_name_or_path."
        )
    text = {**defaults, **fields.pop("text_config", {})}
    built = AutoConfig.for_model(model_type, text_config=text, **{**_image_tokens(tokenizer), **fields})
    return _with_room(built, tokenizer)


def _with_room(config: PretrainedConfig, tokenizer: Tokenizer) -> PretrainedConfig:
    vocabulary = config.get_text_config().vocab_size
    if vocabulary < len(tokenizer):
        raise ValueError(
            f"model.config.vocab_size is {vocabulary}, but the tokenizer has {len(tokenizer)} tokens; leave it out, "
            "and it is taken from the tokenizer."
        )
    _check_heads(config.get_text_config())
    return config


def _check_heads(config: PretrainedConfig) -> None:
    """Refuses heads that cannot share keys and values evenly; the first forward would fail on the shapes."""
    heads = getattr(config, "num_attention_heads", None)
    shared = getattr(config, "num_key_value_heads", None)
    if isinstance(heads, int) and isinstance(shared, int) and (shared < 1 or heads % shared):
        raise ValueError(
            f"model.config.num_attention_heads is {heads} and num_key_value_heads {shared}; the first must be a "
            "multiple of the second, because each key-value head serves the same number of heads."
        )


def reads_images(config: PretrainedConfig) -> bool:
    """Returns whether the configuration is that of an image model, not of its text half alone."""
    return config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def load_model(spec: ModelSpec, tokenizer: Tokenizer, *, seed: int) -> PreTrainedModel:
    """
    Loads the model of a run, or builds it from a configuration with random weights.

    An image model is loaded whole, with its vision tower: `AutoModelForCausalLM` would load the text half of some.

    Args:
        spec (`ModelSpec`):
            Gives the path, the type of the weights, how they are quantized, the attention implementation and what stays
            frozen.
        tokenizer (`PreTrainedTokenizerBase`):
            As in [`load_config`].
        seed (`int`):
            Seed of the random weights.

    Returns:
        `PreTrainedModel`: The model, on the CPU.

    Raises:
        `ValueError`: for the reasons of [`load_config`]; the folder is that of an earlier run, and the model does not
            have the weights that it saved; or a pattern of `freeze` matches no parameter, or nothing is
            left to train.
    """
    config = load_config(spec, tokenizer)
    reject_failing_kernel(spec.attn_implementation, config)
    kwargs: dict[str, Any] = {}
    if spec.attn_implementation is not None:
        kwargs["attn_implementation"] = spec.attn_implementation
    auto = AutoModelForImageTextToText if reads_images(config) else AutoModelForCausalLM
    dtype = "auto" if spec.dtype == "auto" else getattr(torch, spec.dtype)
    if spec.model_name_or_path is not None:
        ours = has_digests(spec.model_name_or_path)
        if spec.quantization_config is not None:
            kwargs["quantization_config"] = read_quantization(spec.quantization_config)
        loaded: Any = auto.from_pretrained(
            spec.model_name_or_path, dtype=dtype, ignore_mismatched_sizes=ours, output_loading_info=True, **kwargs
        )
        model, report = loaded
        if ours:
            check_report(report, spec.model_name_or_path)
        if ours and spec.quantization_config is None:
            compare_weights(model, spec.model_name_or_path)
    else:
        set_seed(seed)
        model = auto.from_config(config, **kwargs, **({} if dtype == "auto" else {"dtype": dtype}))
    _freeze(model, spec.freeze)
    return model


def _freeze(model: PreTrainedModel, patterns: Sequence[str]) -> None:
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        names = fnmatch.filter(parameters, pattern)
        if not names:
            parts = sorted({".".join(name.split(".")[:2]) for name in parameters})
            raise ValueError(
                f"model.freeze has {shorten(pattern)}, which matches none of the {len(parameters)} parameters; they "
                f"begin with {', '.join(parts[:12])}. For instance, {parts[0]}.* matches those of one part."
            )
        for name in names:
            parameters[name].requires_grad_(False)
    if not any(p.requires_grad for p in parameters.values()):
        raise ValueError(f"model.freeze is {shorten(list(patterns))}, which leaves no parameter to train.")


def _image_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in _IMAGE_TOKENS.values() if token not in vocabulary]
    if missing:
        raise ValueError(
            f"the tokenizer has no token {', '.join(missing)}; an image model that is built from model.config takes "
            "its tokens from the tokenizer. Add them, or give their ids in model.config."
        )
    return {key: vocabulary[token] for key, token in _IMAGE_TOKENS.items()}


_IMAGE_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
"""Names of Qwen's."""
