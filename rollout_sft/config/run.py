"""From a YAML file to the stages of a run.

The sections and who reads them:

    extends: other.yaml          a file whose values this one overrides
    global_max_length: 16384     packing_length (template.max_length says the same)
    custom:                      trainer_variant: rollout_matching_sft
    model:                       `ModelSpec`
    data:                        train and eval, each a `DataSpec`
    training:                    `TrainingArguments` and packing*
    rollout_matching:            everything this project adds
    stages:                      a list of overrides, run one after the other, each from the last one's weights

Unknown keys, duplicate keys and values of the wrong type are errors that name the key and what it takes.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.config.decoding import Decoding
from rollout_sft.config.inherited_arguments import enum_values
from rollout_sft.config.vllm import VLLMConfig
from rollout_sft.config.yaml_file import merged, read_document

TRAINER_VARIANT = "rollout_matching_sft"

_TYPED_MAPPINGS: dict[str, Any] = {"decoding": Decoding, "eval_decoding": Decoding, "vllm": VLLMConfig}
_YAML_1_1 = {"yes": True, "on": True, "no": False, "off": False}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """
    The section `model`.

    Args:
        model_name_or_path (`str`, *optional*):
            A directory or hub name that `AutoModelForCausalLM.from_pretrained` loads.
        config (`dict`, *optional*):
            Instead of a path: `model_type` and the fields of its configuration; random weights from `training.seed`.
        tokenizer_name_or_path (`str`, *optional*):
            A directory, a hub name, or `module:function` of a function without arguments that returns a tokenizer;
            `model_name_or_path` when not given.
        attn_implementation (`str`, *optional*):
            As in transformers, for instance `sdpa` or `flash_attention_2`.
        dtype (`str`, *optional*, defaults to `"float32"`):
            Type of the weights: float32, bfloat16, float16, float64 or auto.
    """

    model_name_or_path: str | None = None
    config: dict[str, Any] | None = None
    tokenizer_name_or_path: str | None = None
    attn_implementation: str | None = None
    dtype: typing.Literal["float32", "bfloat16", "float16", "float64", "auto"] = "float32"


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """
    One of `data.train`, `data.eval`.

    Args:
        source (`str`):
            A path that ends in .jsonl; the name of a `datasets` data set; or `module:function` of a function that
            takes the keywords `tokenizer`, `split`, `size`, `seed` and those of `arguments`, and returns a data set.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a `datasets` data set or of an import path; a file has none.
        name (`str`, *optional*):
            Configuration name of a `datasets` data set.
        size (`int`, *optional*):
            Files and `datasets`: uses the first samples, this many; all when not given. Import paths get it as it is.
        seed (`int`, *optional*):
            For import paths; `training.seed` when not given.
        arguments (`dict`, *optional*):
            Further keywords for an import path.
    """

    source: str
    split: str = "train"
    name: str | None = None
    size: int | None = None
    seed: int | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """
    One stage of a run: everything that is needed to train once.

    Args:
        name (`str`):
            Names its folder below `output_dir` when there are several.
        training (`RolloutSFTConfig`):
            Arguments of the trainer.
        model (`ModelSpec`):
            What is trained; a later stage starts from the earlier one's weights.
        train (`DataSpec`):
            Training samples.
        eval (`DataSpec`, *optional*):
            Evaluation samples.
    """

    name: str
    training: RolloutSFTConfig
    model: ModelSpec
    train: DataSpec
    eval: DataSpec | None


def load_run(path: str | Path) -> list[StageConfig]:
    """
    Reads a configuration file.

    Args:
        path (`str` or `Path`):
            The YAML file; `extends` in it is relative to it.

    Returns:
        `list[StageConfig]`: The stages in order; one when the file has no `stages`.

    Raises:
        `ValueError`: an unknown or duplicate key, or a bad value; the message names the key, the nearest valid one
            and what it takes.
        `FileNotFoundError`: the file or one it extends does not exist.
    """
    document = read_document(Path(path))
    stages = document.pop("stages", None)
    if stages is None:
        return [_stage("train", document, folder=None)]
    if not isinstance(stages, list) or not stages or not all(isinstance(s, dict) for s in stages):
        raise ValueError(f"stages is {stages!r}; it takes a list of mappings, each with a name and overrides.")
    names = [s.get("name") for s in stages]
    if len(set(names)) < len(names) or not all(isinstance(n, str) and re.fullmatch(r"[\w.-]+", n) for n in names):
        raise ValueError(f"stages have the names {names}; each takes its own, of letters, digits, '.', '_' and '-'.")
    return [
        _stage(s["name"], merged(document, {k: v for k, v in s.items() if k != "name"}), folder=s["name"])
        for s in stages
    ]


def _stage(name: str, document: dict[str, Any], *, folder: str | None) -> StageConfig:
    sections = ("global_max_length", "template", "custom", "model", "data", "training", "rollout_matching")
    _check_keys("", document, sections)
    custom = _mapping(document, "custom")
    _check_keys("custom", custom, ["trainer_variant"])
    variant = custom.get("trainer_variant", TRAINER_VARIANT)
    if variant != TRAINER_VARIANT:
        raise ValueError(f"custom.trainer_variant is {variant!r}; it takes {TRAINER_VARIANT}.")
    data = _mapping(document, "data")
    _check_keys("data", data, ["train", "eval"])
    if "train" not in data:
        raise ValueError(
            "data.train is missing; it takes a mapping with a source: a .jsonl path, a name or module:function."
        )
    arguments = {
        "global_max_length": _packing_length(document),
        **_typed("training", _mapping(document, "training"), _training_fields()),
        **_typed("rollout_matching", _mapping(document, "rollout_matching"), _fields_of("rollout_matching")),
    }
    for knob, owner in _TYPED_MAPPINGS.items():
        if knob in arguments:
            specs = {f.name: f for f in fields(owner)}
            arguments[knob] = _typed(f"rollout_matching.{knob}", arguments[knob], specs, owner=owner)
    if folder is not None:
        arguments["output_dir"] = str(Path(arguments.get("output_dir", "runs")) / folder)
    training = RolloutSFTConfig(**arguments)
    return StageConfig(
        name=name,
        training=training,
        model=_model_spec(_mapping(document, "model")),
        train=_spec(DataSpec, "data.train", _mapping(data, "train")),
        eval=_spec(DataSpec, "data.eval", _mapping(data, "eval")) if data.get("eval") else None,
    )


def _packing_length(document: dict[str, Any]) -> int:
    """`global_max_length`, or `template.max_length`, which must not disagree."""
    template = _mapping(document, "template")
    _check_keys("template", template, ["max_length"])
    given = {
        key: value
        for key, value in (
            ("global_max_length", document.get("global_max_length")),
            ("template.max_length", template.get("max_length")),
        )
        if value is not None
    }
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{key} is {value!r}; it takes the tokens of the longest packed forward, 1 or more.")
    if not given:
        raise ValueError("global_max_length is missing; it gives packing_length, the tokens a packed forward may hold.")
    if len(set(given.values())) > 1:
        raise ValueError(f"{given} disagree; both give packing_length, so set one of them.")
    return next(iter(given.values()))


def _model_spec(section: dict[str, Any]) -> ModelSpec:
    spec: ModelSpec = _spec(ModelSpec, "model", section)
    if (spec.model_name_or_path is None) == (spec.config is None):
        raise ValueError("model takes either model_name_or_path or config (model_type and its fields), exactly one.")
    if spec.config is not None and "model_type" not in spec.config:
        raise ValueError("model.config has no model_type; it takes one of transformers' names, for instance qwen3.")
    if spec.model_name_or_path is None and spec.tokenizer_name_or_path is None:
        raise ValueError("model.tokenizer_name_or_path is missing; a model built from a config brings no tokenizer.")
    return spec


# --- keys and values -------------------------------------------------------------------------------------------


def _fields_of(section: str) -> dict[str, Field[Any]]:
    return {f.name: f for f in fields(RolloutSFTConfig) if f.metadata.get("section") == section}


def _training_fields() -> dict[str, Field[Any]]:
    ours = {"rollout_matching", "top"}
    return {f.name: f for f in fields(RolloutSFTConfig) if f.init and f.metadata.get("section") not in ours}


_MOVED = {
    "training.packing_length": "packing_length is derived: set global_max_length or template.max_length instead",
    "training.global_max_length": "global_max_length stands at the top of the file, outside every section",
    "rollout_matching.boundary_supervision": "set prefix_supervision: expert, or coordinates for what false stood for",
    "training.max_length": "set global_max_length or template.max_length instead",
}


def _check_keys(section: str, mapping: Mapping[str, Any], valid: Iterable[str]) -> None:
    valid = list(valid)
    for key in mapping:
        if key in valid:
            continue
        path = f"{section}.{key}" if section else str(key)
        if path in _MOVED:
            raise ValueError(f"{path} is refused: {_MOVED[path]}.")
        near = difflib.get_close_matches(str(key), valid, n=1, cutoff=0.5)
        near = near or [name for name in valid if len(str(key)) > 3 and str(key) in name]
        if near:
            hint = f"the nearest valid key is {near[0]}, which takes {_takes(section, near[0])}"
        else:
            hint = f"{section or 'the file'} takes {', '.join(sorted(valid)[:12])}"
        elsewhere = [s for s in ("training", "rollout_matching") if s != section and key in _known(s)]
        if elsewhere:
            hint = f"it belongs under {elsewhere[0]}:, where it takes {_takes(elsewhere[0], str(key))}"
        raise ValueError(f"unknown key {path}: {hint}.")


def _known(section: str) -> dict[str, Field[Any]]:
    return _training_fields() if section == "training" else _fields_of(section)


def _owner(section: str) -> type:
    owners = {"model": ModelSpec, "data.train": DataSpec, "data.eval": DataSpec}
    if section.endswith("decoding"):
        return Decoding
    if section.endswith(".vllm"):
        return VLLMConfig
    return owners.get(section, RolloutSFTConfig)


def _takes(section: str, key: str) -> str:
    owner = _owner(section)
    spec = {f.name: f for f in fields(owner)}.get(key)
    if spec is None:
        return "a mapping" if key not in ("trainer_variant", "max_length", "global_max_length") else "one value"
    if "choices" in spec.metadata:
        return " | ".join(spec.metadata["choices"])
    return _readable(typing.get_type_hints(owner)[key])


def _readable(annotation: Any) -> str:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = typing.get_args(annotation)
        if any(enum_values(annotation)):  # beside them `str` says only that they may be given as text
            members = tuple(a for a in members if a is not str)
        return " | ".join(_readable(a) for a in members)
    if isinstance(annotation, type) and any(enum_values(annotation)):
        return " | ".join(enum_values(annotation))
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(str(a) for a in typing.get_args(annotation))
    if annotation is type(None):
        return "nothing"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    if annotation in names:
        return names[annotation]
    return "a mapping" if typing.get_origin(annotation) is dict else str(getattr(annotation, "__name__", annotation))


def _typed(
    section: str, values: Mapping[str, Any], specs: Mapping[str, Field[Any]], *, owner: type = RolloutSFTConfig
) -> dict[str, Any]:
    """The values, checked and converted to the annotated type of each field."""
    _check_keys(section, values, specs)
    hints = typing.get_type_hints(owner)
    out = {}
    for key, value in values.items():
        annotation = hints[key]
        accepts = typing.get_args(annotation) or (annotation,)
        if bool in accepts and isinstance(value, str):
            value = _YAML_1_1.get(value.lower(), value)
        if key not in _TYPED_MAPPINGS:
            _check_untyped(f"{section}.{key}", value)
        try:
            if isinstance(value, bool) and not any(_takes_truth(a) for a in accepts):
                raise TypeError
            adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
            out[key] = adapter.validate_python(value)
        except (ValidationError, TypeError):
            raise ValueError(f"{section}.{key} is {value!r}; it takes {_takes(section, key)}.") from None
    return out


def _takes_truth(annotation: Any) -> bool:
    return annotation in (bool, Any) or typing.get_origin(annotation) is typing.Literal


def _check_untyped(path: str, value: Any) -> None:
    """Below a mapping of any values nothing says whether `off` is meant as a truth or as text, so ask."""
    for key, inner in value.items() if isinstance(value, Mapping) else ():
        if isinstance(inner, str) and inner.lower() in _YAML_1_1:
            raise ValueError(f"{path}.{key} is {inner!r}, which is text in YAML 1.2; it takes true or false.")
        _check_untyped(f"{path}.{key}", inner)


def _spec(owner: type, section: str, values: dict[str, Any]) -> Any:
    specs = {f.name: f for f in fields(owner)}
    typed = _typed(section, values, specs, owner=owner)
    for key, spec in specs.items():
        if spec.default is MISSING and spec.default_factory is MISSING and key not in typed:
            raise ValueError(f"{section}.{key} is missing; it takes {_takes(section, key)}.")
    return owner(**typed)


def _mapping(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{key} is {value!r}; it takes a mapping of keys to values.")
    return value
