"""From the sections `model` and `data` to a tokenizer, a model and data sets."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, set_seed
from transformers import PreTrainedTokenizerBase as Tokenizer

from rollout_sft.config.run import DataSpec, ModelSpec


def load_tokenizer(spec: ModelSpec) -> Tokenizer:
    """
    The tokenizer of a run.

    Args:
        spec (`ModelSpec`):
            Names a directory, a hub name or `digits`.

    Returns:
        `PreTrainedTokenizerBase`: The tokenizer.
    """
    name = spec.tokenizer_name_or_path or spec.model_name_or_path
    if name == "digits":
        from rollout_sft.data.digits import build_digits_tokenizer

        return build_digits_tokenizer()
    return AutoTokenizer.from_pretrained(name)


def load_model(spec: ModelSpec, tokenizer: Tokenizer, *, seed: int) -> PreTrainedModel:
    """
    The model of a run: loaded, or built from a configuration with random weights.

    Args:
        spec (`ModelSpec`):
            Path or configuration, type of the weights and attention implementation.
        tokenizer (`PreTrainedTokenizerBase`):
            Gives the vocabulary's size and the end and padding tokens of a model that is built.
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


def load_dataset(spec: DataSpec, tokenizer: Tokenizer, *, seed: int, require_objects: bool = True) -> Any:
    """
    The samples that a data section names.

    Args:
        spec (`DataSpec`):
            `digits`, a .jsonl file or the name of a `datasets` data set.
        tokenizer (`PreTrainedTokenizerBase`):
            Encodes the prompts.
        seed (`int`):
            Used where the section names none.
        require_objects (`bool`, *optional*, defaults to `True`):
            Whether records have to hold `objects`: what the target builder `objects` reads.

    Returns:
        A map-style data set of samples.
    """
    if spec.source == "digits":
        from rollout_sft.data.digits import DigitsDataset

        return DigitsDataset(
            spec.split,
            size=spec.size or 1024,
            seed=seed if spec.seed is None else spec.seed,
            max_digits=spec.max_digits,
            ramp_fraction=spec.ramp_fraction,
        )
    from rollout_sft.data.records import load_records

    return load_records(
        spec.source,
        tokenizer,
        split=spec.split,
        name=spec.name,
        limit=spec.size,
        require_objects=require_objects,
    )
