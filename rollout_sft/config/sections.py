"""Defines the sections `model` and `data`, and a stage: everything that is needed to train once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from rollout_sft.config.adapter import read_adapter
from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.config.keys import Range
from rollout_sft.config.quantization import read_quantization
from rollout_sft.config.shorten import shorten

BoxUnits = Literal["as_given", "norm1000"]
"""Units of the boxes that the model reads and writes: those of the data, or thousandths of the image's sides."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """
    Holds the section `model`.

    Args:
        model_name_or_path (`str`, *optional*):
            A directory or hub name of a causal language model, or of an image model with its image processor.
        config (`dict`, *optional*):
            Instead of a path: `model_type` and the fields of its configuration; random weights from `training.seed`.
            Image models have `text_config` and `vision_config` in it.
        tokenizer_name_or_path (`str`, *optional*):
            A directory, a hub name, or `module:function` of a function without arguments that returns a tokenizer;
            `model_name_or_path` when not given.
        attn_implementation (`str`, *optional*):
            As in transformers, for instance `sdpa` or `flash_attention_2`.
        dtype (`str`, *optional*, defaults to `"float32"`):
            Type of the weights: float32, bfloat16, float16, float64 or auto.
        min_pixels, max_pixels (`int`, *optional*):
            An image of fewer or more pixels is resized; Qwen-VL models alone take it, and their tokens grow with the
            pixels. What the checkpoint's image processor says when not given.
        freeze (`list[str]`, *optional*):
            Patterns of parameter names that are not trained, such as `model.visual.*`; `*` stands for any text.
        peft (`dict`, *optional*):
            An adapter that is trained instead of the weights: `peft_type`, such as `LORA`, and the fields of peft's
            configuration class, such as `r`, `lora_alpha` and `target_modules`.
        quantization_config (`dict`, *optional*):
            Quantizes the weights below the adapter while they are loaded: `load_in_4bit` or `load_in_8bit`, and other
            fields of transformers' `BitsAndBytesConfig`. Needs `peft`.
    """

    model_name_or_path: str | None = None
    config: dict[str, Any] | None = None
    tokenizer_name_or_path: str | None = None
    attn_implementation: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "float64", "auto"] = "float32"
    min_pixels: Annotated[int | None, Range(takes="1 pixel or more, or nothing", at_least=1)] = None
    max_pixels: Annotated[int | None, Range(takes="1 pixel or more, or nothing", at_least=1)] = None
    freeze: list[str] = field(default_factory=list)
    peft: dict[str, Any] | None = None
    quantization_config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if (self.model_name_or_path is None) == (self.config is None):
            raise ValueError(
                "model takes either model_name_or_path or config (model_type and its fields), exactly one."
            )
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("model.config has no model_type; it takes one of transformers' names, for instance qwen3.")
        for key in ("dtype", "torch_dtype"):
            if self.config is not None and self.config.get(key, self.dtype) != self.dtype:
                raise ValueError(
                    f"model.config.{key} is {shorten(self.config[key])}, but the weights get model.dtype, which is "
                    f"{self.dtype}. Set model.dtype, and remove {key}."
                )
        if self.model_name_or_path is None and self.tokenizer_name_or_path is None:
            raise ValueError(
                "model.tokenizer_name_or_path is missing; a model built from a config brings no tokenizer."
            )
        if self.peft is not None:
            if self.config is not None:
                raise ValueError(
                    "model.peft trains an adapter on weights that stay as they are, and model.config gives random "
                    "ones. Set model.model_name_or_path, or remove model.peft."
                )
            read_adapter(self.peft)
        if self.quantization_config is not None:
            if self.peft is None:
                raise ValueError(
                    f"model.quantization_config is {shorten(self.quantization_config)}, but model.peft is missing, and "
                    "quantized weights cannot be trained: there would be no weight to train. Set model.peft, or remove "
                    "quantization_config."
                )
            read_quantization(self.quantization_config)


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """
    Holds the section `data.train` or `data.eval`.

    Args:
        source (`str` or `list[str]`):
            A .jsonl, .json, .csv or .parquet file (`~` is the home folder); the name of a `datasets` data set; a list
            of them, which follow each other; or `module:function` of a function that takes the keywords `tokenizer`,
            `split`, `size`, `seed` and those of `arguments`, and returns a data set.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a `datasets` data set or of an import path; a file has none.
        name (`str`, *optional*):
            Configuration name of a `datasets` data set.
        size (`int`, *optional*):
            Files and `datasets`: uses this many samples from the start; all when not given. An import path gets it
            unchanged.
        seed (`int`, *optional*):
            For import paths; `training.seed` when not given.
        arguments (`dict`, *optional*):
            Further keywords for an import path.
    """

    source: str | list[str]
    split: str = "train"
    name: str | None = None
    size: Annotated[int | None, Range(takes="1 sample or more, or nothing", at_least=1)] = None
    seed: int | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """
    Holds one stage of a run: everything that is needed to train once.

    Args:
        name (`str`):
            Names its folder below `output_dir` when there are several.
        training (`RolloutSFTConfig`):
            Arguments of the trainer.
        model (`ModelSpec`):
            The model to train; a later stage starts from the weights of the stage before.
        train (`DataSpec`):
            Training samples.
        eval (`DataSpec`, *optional*):
            Evaluation samples.
        boxes (`str`, *optional*, defaults to `"as_given"`):
            `norm1000` turns the boxes of both, given in pixels, into thousandths of the image's sides.
    """

    name: str
    training: RolloutSFTConfig
    model: ModelSpec
    train: DataSpec
    eval: DataSpec | None
    boxes: BoxUnits = "as_given"

    def after(self, folder: str) -> StageConfig:
        """Returns the stage with the weights, and unless it names another the tokenizer, that the one before saved."""
        tokenizer = self.model.tokenizer_name_or_path or folder
        model = replace(self.model, model_name_or_path=folder, config=None, tokenizer_name_or_path=tokenizer)
        return replace(self, model=model)

    def __post_init__(self) -> None:
        for key, computes_in in (("bf16", "bfloat16"), ("fp16", "float16")):
            if getattr(self.training, key) and self.model.dtype in {"bfloat16", "float16"} - {computes_in}:
                raise ValueError(
                    f"training.{key} is True, which computes in {computes_in}, but model.dtype is {self.model.dtype}. "
                    f"Set model.dtype: {computes_in} or float32, or remove {key}."
                )
