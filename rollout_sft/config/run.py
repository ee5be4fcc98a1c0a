"""Reads the stages of a run from a YAML file.

The sections and who reads them:

    extends: other.yaml          a file whose values this one overrides
    global_max_length: 16384     packing_length (template.max_length says the same)
    custom:                      trainer_variant: rollout_matching_sft
    model:                       `ModelSpec`
    data:                        train and eval, each a `DataSpec`; boxes, their units; chat_template_kwargs
    training:                    `TrainingArguments` and packing*
    rollout_matching:            everything this project adds
    stages:                      a list of overrides, run one after the other, each from the last one's weights

Unknown keys, duplicate keys and values of the wrong type are errors that name the key and what it takes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollout_sft.config.arguments import DATA, ROLLOUT_MATCHING, TOP, TRAINING, RolloutSFTConfig
from rollout_sft.config.keys import Section, build, section_of
from rollout_sft.config.other_trainers import DATA_KEYS, LENGTH_KEYS, MODEL_KEYS, SOURCE_KEYS
from rollout_sft.config.sections import BoxUnits, DataSpec, ModelSpec, StageConfig
from rollout_sft.config.shorten import shorten
from rollout_sft.config.yaml_file import merged, read_document

TRAINER_VARIANT = "rollout_matching_sft"
MAX_STAGES = 32


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
        raise ValueError(f"stages is {shorten(stages)}; it takes a list of mappings, each with a name and overrides.")
    if len(stages) > MAX_STAGES:
        raise ValueError(f"stages has {len(stages)} entries; it takes at most {MAX_STAGES}.")
    names = [s.get("name") for s in stages]
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,99}", name) or names.count(name) > 1:
            raise ValueError(
                f"stages have the names {shorten(names)}, where {shorten(name)} is refused; each takes a name of its "
                "own, 1 to 100 letters, digits, '.', '_' and '-', that begins with a letter, a digit or '_'."
            )
    return _several(document, stages)


def _several(document: dict[str, Any], stages: list[dict[str, Any]]) -> list[StageConfig]:
    """Makes the stages; the error of a mistake that only some of them have names the first of these."""
    made: list[StageConfig] = []
    mistakes: dict[str, ValueError] = {}
    for stage in stages:
        name, overrides = stage["name"], {key: value for key, value in stage.items() if key != "name"}
        try:
            stage_made = _stage(name, merged(document, overrides), folder=name)
            if made:
                _check_start(overrides.get("model"), stage_made.model, made[0].model)
            made.append(stage_made)
        except ValueError as error:
            mistakes[name] = error
    if not mistakes:
        return made
    name, first = next(iter(mistakes.items()))
    if len(mistakes) == len(stages) and len({str(mistake) for mistake in mistakes.values()}) == 1:
        raise first
    raise ValueError(f"stage {name}: {first}") from first


def _check_start(given: Any, model: ModelSpec, first: ModelSpec) -> None:
    """Refuses a model of its own in a stage after the first, which would be ignored."""
    for key in ("model_name_or_path", "config"):
        value = given.get(key) if isinstance(given, Mapping) else None
        if value is not None and getattr(model, key) != getattr(first, key):
            raise ValueError(
                f"model.{key} is {shorten(value)}, but a stage starts from the weights of the one before; leave it "
                "out, or run the stage as a file of its own."
            )


def _stage(name: str, document: dict[str, Any], *, folder: str | None) -> StageConfig:
    given = _FILE.read(_without_none(document))
    custom = _CUSTOM.read(given.get("custom", {}))
    variant = custom.get("trainer_variant", TRAINER_VARIANT)
    if variant != TRAINER_VARIANT:
        raise ValueError(f"custom.trainer_variant is {shorten(variant)}; it takes {TRAINER_VARIANT}.")
    data = _read_data(given.get("data", {}))
    if "train" not in data:
        raise ValueError(
            "data.train is missing; it takes a mapping with a source: a .jsonl path, a name or module:function."
        )
    arguments = {
        "global_max_length": _packing_length(given),
        **{key: data[key] for key in DATA.hints if key in data},
        **TRAINING.read(given.get("training", {})),
        **ROLLOUT_MATCHING.read(given.get("rollout_matching", {})),
    }
    if folder is not None:
        arguments["output_dir"] = str(Path(arguments.get("output_dir") or "runs") / folder)
    training = RolloutSFTConfig(**arguments)
    if training.eval_strategy != "no" and not data.get("eval"):
        raise ValueError(
            f"training.eval_strategy is {arguments['eval_strategy']}, but data.eval is missing; give data.eval a "
            "source, or leave eval_strategy out."
        )
    if training.eval_strategy == "no" and arguments.get("eval_steps") is not None:
        raise ValueError(
            f"training.eval_steps is {arguments['eval_steps']}, but training.eval_strategy is no, so it would have no "
            "effect. Set eval_strategy: steps, or remove eval_steps."
        )
    return StageConfig(
        name=name,
        training=training,
        model=build(
            ModelSpec, "model", _mapping(given.get("model", {}), "model", "model_name_or_path"), moved=MODEL_KEYS
        ),
        train=build(DataSpec, "data.train", data["train"], moved=SOURCE_KEYS),
        eval=build(DataSpec, "data.eval", data["eval"], moved=SOURCE_KEYS) if data.get("eval") else None,
        boxes=data.get("boxes", "as_given"),
    )


def _read_data(section: Any) -> dict[str, Any]:
    if not isinstance(section, Mapping):
        return _DATA.read(section)
    given = _without_none(section)
    sets = {key: _mapping(given[key], f"data.{key}", "source") for key in ("train", "eval") if key in given}
    return _DATA.read({**given, **sets})


def _mapping(value: Any, path: str, key: str) -> Any:
    """Returns the value; refuses a text or a list that is meant as the value of its most important key."""
    if isinstance(value, str | list):
        given, name = shorten(value), path.rpartition(".")[2]
        raise ValueError(f"{path} is {given}; it takes a mapping. Write {name}: {{{key}: {given}}}.")
    return value


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out empty sections, such as `eval:` without a value."""
    return {key: value for key, value in values.items() if value is not None}


def _packing_length(given: Mapping[str, Any]) -> int:
    """Returns `global_max_length` or `template.max_length`; refuses two different values."""
    template = _TEMPLATE.read(given.get("template", {}))
    lengths = {
        path: length
        for path, length in (
            ("global_max_length", given.get("global_max_length")),
            ("template.max_length", template.get("max_length")),
        )
        if length is not None
    }
    if not lengths:
        raise ValueError("global_max_length is missing; it gives packing_length, the tokens a packed forward may hold.")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{lengths} disagree; both give packing_length, so set one of them.")
    return next(iter(lengths.values()))


_SECTIONS = ("template", "custom", "model", "data", "training", "rollout_matching")
_MODEL = section_of("model", ModelSpec)
_FILE = Section(
    path="",
    hints={**TOP.hints, **dict.fromkeys(_SECTIONS, Mapping), "model": Any},
    elsewhere=(TRAINING, ROLLOUT_MATCHING, _MODEL),
    moved={
        **LENGTH_KEYS,
        "packing_length": "packing_length is derived: set global_max_length",
        "extends": "it stands at the top of a file alone; write what the stage overrides into it",
        "train": "set data.train",
        "eval": "set data.eval",
    },
)
_TEMPLATE = Section(
    path="template",
    hints={"max_length": TOP.hints["global_max_length"]},
    moved={key: reason for key, reason in LENGTH_KEYS.items() if key != "max_length"},
)
_CUSTOM = Section(path="custom", hints={"trainer_variant": str})
_DATA = Section(
    path="data", hints={"train": DataSpec, "eval": DataSpec, "boxes": BoxUnits, **DATA.hints}, moved=DATA_KEYS
)
