"""Loads the tokenizer and the model that the section `model` names."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, set_seed
from transformers import PreTrainedTokenizerBase as Tokenizer

from rollout_sft.config.import_path import call_import_path, is_import_path
from rollout_sft.config.sections import ModelSpec


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
    if name is not None and is_import_path(name):
        takes = "a directory, a hub name, or module:function of a function () -> PreTrainedTokenizerBase"
        made: Tokenizer = call_import_path(name, key="model.tokenizer_name_or_path", takes=takes)
        return made
    return AutoTokenizer.from_pretrained(name)


def load_model(spec: ModelSpec, tokenizer: Tokenizer, *, seed: int) -> PreTrainedModel:
    """
    Loads the model of a run, or builds it from a configuration with random weights.

    Args:
        spec (`ModelSpec`):
            Gives the path or the configuration, the type of the weights and the attention implementation.
        tokenizer (`PreTrainedTokenizerBase`):
            Gives a model that is built the size of its vocabulary and its end and padding tokens.
        seed (`int`):
            Seed of the random weights.

    Returns:
        `PreTrainedModel`: The model, on the CPU.
    """
    kwargs: dict[str, Any] = {}
    if spec.attn_implementation is not None:
        kwargs["attn_implementation"] = spec.attn_implementation
    dtype = "auto" if spec.dtype == "auto" else getattr(torch, spec.dtype)
    if spec.model_name_or_path is not None:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(spec.model_name_or_path, dtype=dtype, **kwargs)
        return model
    fields = dict(spec.config or {})
    model_type = fields.pop("model_type")
    defaults = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = AutoConfig.for_model(model_type, **{**defaults, **fields})
    set_seed(seed)
    if dtype != "auto":
        kwargs["dtype"] = dtype
    built: PreTrainedModel = AutoModelForCausalLM.from_config(config, **kwargs)
    return built
