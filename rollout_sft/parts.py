"""Loads what a stage needs, in the order in which mistakes are cheapest: tokenizer, data, target builder, model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from rollout_sft.checkpoint.comparison import Comparison, compare
from rollout_sft.checkpoint.described_parts import describe_parts
from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.config.import_path import is_import_path
from rollout_sft.config.sections import ModelSpec, StageConfig
from rollout_sft.config.shorten import cut, shorten
from rollout_sft.data.loading import load_dataset
from rollout_sft.data.sources import check_sources
from rollout_sft.inputs.base import InputAdapter
from rollout_sft.inputs.choose import make_adapter
from rollout_sft.model.adapters import load_adapted
from rollout_sft.model.attention_names import attention_advice
from rollout_sft.model.image_processor import load_image_processor
from rollout_sft.model.loading import load_config, load_model, load_tokenizer
from rollout_sft.output_folder import Start
from rollout_sft.targets.base import TargetBuilder
from rollout_sft.targets.loading import make_target_builder
from rollout_sft.user_errors import is_for_user


@dataclass(frozen=True, kw_only=True)
class Parts:
    """
    Holds what a trainer is made of.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            Encodes prompts and decodes answers.
        image_processor (`BaseImageProcessor`, *optional*):
            Makes the pixels for an image model.
        train (`Dataset`):
            The training samples.
        eval (`Dataset`, *optional*):
            The evaluation samples.
        target_builder (`TargetBuilder`):
            Makes segments.
        load_model (`Callable[[], nn.Module]`):
            Loads the model; called once.
    """

    tokenizer: Tokenizer
    image_processor: Any
    train: Any
    eval: Any
    target_builder: TargetBuilder
    load_model: Callable[[], nn.Module]


def check_files(stages: Sequence[StageConfig]) -> None:
    """Raises an error for a local data file of any stage that is missing; a later stage would fail after hours."""
    for stage in stages:
        for key, spec in (("data.train", stage.train), ("data.eval", stage.eval)):
            if spec is not None and not (isinstance(spec.source, str) and is_import_path(spec.source)):
                with _naming(f"{key}.source"):
                    check_sources(spec.source)


def load_parts(stage: StageConfig) -> Parts:
    """
    Loads everything but the model, which `Parts.load_model` loads.

    Args:
        stage (`StageConfig`):
            The stage.

    Raises:
        `ValueError`: a part cannot be loaded; the message names the key.
        `FileNotFoundError`: a local data file does not exist.
    """
    args, spec = stage.training, stage.model
    key = "model.model_name_or_path" if spec.tokenizer_name_or_path is None else "model.tokenizer_name_or_path"
    with _loading(key, spec.tokenizer_name_or_path or spec.model_name_or_path):
        tokenizer = load_tokenizer(spec)
    with _loading_model(spec):
        config = load_config(spec, tokenizer)
        image_processor = load_image_processor(spec, config)
        adapter = make_adapter(config, tokenizer, image_processor)
    load = partial(
        load_dataset,
        seed=args.seed,
        require_objects=args.target_builder == "objects",
        adapter=adapter,
        boxes=stage.boxes,
        chat_template_kwargs=args.chat_template_kwargs,
    )
    return Parts(
        tokenizer=tokenizer,
        image_processor=image_processor,
        train=load(stage.train, tokenizer, key="data.train", longest_prompt=_longest_prompt(args, adapter)),
        eval=load(stage.eval, tokenizer, key="data.eval") if stage.eval else None,
        target_builder=make_target_builder(tokenizer, args),
        load_model=lambda: _load_model(spec, tokenizer, args.seed),
    )


def compare_stage(stage: StageConfig, parts: Parts, model: nn.Module, start: Start) -> Comparison | None:
    """
    Compares a stage that resumes with what it resumes, before a trainer is made; every rank calls it.

    Args:
        stage (`StageConfig`):
            The stage.
        parts (`Parts`):
            What was loaded for it.
        model (`nn.Module`):
            The model that `parts` loaded.
        start ([`~rollout_sft.output_folder.Start`]):
            Where the stage starts.

    Returns:
        `Comparison` or `None`: None where there is nothing to compare with.

    Raises:
        `ValueError`: what it resumes is damaged, or was trained with other settings.
    """
    if start.source is None or (start.numbers is not None and start.saved is None):
        return None
    described = describe_parts(
        model,
        tokenizer=parts.tokenizer,
        image_processor=parts.image_processor,
        target_builder=parts.target_builder,
    )
    return compare(stage.training, model, described, parts.train, start.source, start.saved)


def _load_model(spec: ModelSpec, tokenizer: Tokenizer, seed: int) -> nn.Module:
    with _loading_model(spec):
        return load_adapted(spec, lambda below: load_model(below, tokenizer, seed=seed), seed=seed)


def _longest_prompt(args: RolloutSFTConfig, adapter: InputAdapter) -> int | None:
    """Returns the most tokens of a prompt with images that leave room for the answer and the dummy image."""
    if args.on_oversized == "skip":  # training leaves such samples out
        return None
    dummy = adapter.dummy() if args.packing else None
    answer = args.decoding.max_new_tokens if args.reference_fraction < 1 else 1
    return args.global_max_length - answer - (0 if dummy is None else dummy.encoded_len)


def _loading_model(spec: ModelSpec) -> AbstractContextManager[None]:
    key = "model.config" if spec.model_name_or_path is None else "model.model_name_or_path"
    return _loading(key, spec.model_name_or_path or spec.config, attention=spec.attn_implementation)


@contextmanager
def _loading(key: str, value: Any, *, attention: str | None = None) -> Iterator[None]:
    """Names the key in the errors of transformers, and refuses a missing local path, which it would ask a hub for."""
    if isinstance(value, str) and value.startswith(("/", "./", "../", "~")) and not Path(value).exists():
        raise FileNotFoundError(f"{key} is {shorten(value)}: no such folder; the path is taken from {os.getcwd()}.")
    try:
        yield
    except (OSError, ImportError, ValueError, KeyError, TypeError, StrictDataclassError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and key != "model.config":  # a shape that torch cannot make
            raise
        if "attn_implementation" in str(error) or "FlashAttention" in str(error):
            raise ValueError(
                f"model.attn_implementation is {shorten(attention)}, which cannot be used: "
                f"{attention_advice(attention)} transformers says: {cut(str(error), 600)}"
            ) from error
        if is_for_user(error) or (isinstance(value, str) and is_import_path(value)):
            raise
        missing = isinstance(value, str) and isinstance(error, OSError) and not Path(value).exists()
        looked = f" There is no folder of this name in {os.getcwd()}, so a hub was asked." if missing else ""
        raise ValueError(
            f"{key} is {shorten(value)}, which cannot be loaded: {type(error).__name__}: {cut(str(error), 600)}{looked}"
        ) from error


@contextmanager
def _naming(key: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{key}: {error}") from None
