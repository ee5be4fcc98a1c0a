"""Loads the data sets that the section `data` names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from rollout_sft.config.import_path import call_import_path, import_path, is_import_path, meant_import_path
from rollout_sft.config.sections import BoxUnits, DataSpec
from rollout_sft.config.shorten import shorten
from rollout_sft.data.records import load_records
from rollout_sft.data.sources import local_path, names_of
from rollout_sft.inputs.base import InputAdapter

_TAKES = (
    "a function that takes tokenizer, split, size, seed and the keys of arguments as keywords, and adapter if it makes "
    "samples with images"
)
_OFFERED = ("adapter", "chat_template_kwargs")
"""What a function gets if it has such a parameter."""


def load_dataset(
    spec: DataSpec,
    tokenizer: Tokenizer,
    *,
    seed: int,
    key: str = "data.train",
    require_objects: bool = True,
    adapter: InputAdapter | None = None,
    longest_prompt: int | None = None,
    boxes: BoxUnits = "as_given",
    chat_template_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """
    Loads the samples that a data section names.

    Args:
        spec (`DataSpec`):
            Files, names of `datasets` data sets, or an import path.
        tokenizer (`PreTrainedTokenizerBase`):
            Encodes the prompts.
        seed (`int`):
            Used when the section has no seed.
        key (`str`, *optional*, defaults to `"data.train"`):
            The section, for messages.
        require_objects (`bool`, *optional*, defaults to `True`):
            Whether records have to hold `objects`, which the target builder `objects` reads.
        adapter (`InputAdapter`, *optional*):
            Of an image model; None reads text alone. An import path gets it if its function has such a parameter.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*):
            Further arguments of the chat template. An import path whose function has no such parameter is refused.
        longest_prompt, boxes:
            As in [`~rollout_sft.data.records.load_records`].

    Returns:
        A data set of samples. It is map-style, except that an import path may return an iterable one.

    Raises:
        `ValueError`: a record is bad, see [`~rollout_sft.data.records.load_records`]; or the import path cannot be
            imported or does not take the arguments of the section.
    """
    if isinstance(spec.source, str) and is_import_path(spec.source):
        if boxes != "as_given":
            raise ValueError(
                f"data.boxes is {boxes}, but {key}.source is an import path, whose function makes the boxes itself; "
                "turn them there (rollout_sft.data.boxes), and remove data.boxes."
            )
        taken = sorted({"tokenizer", "split", "size", "seed", *_OFFERED} & set(spec.arguments))
        if taken:
            raise ValueError(
                f"{key}.arguments has {', '.join(taken)}, which {key} sets itself; set the keys of {key} instead."
            )
        key, takes = f"{key}.source", _TAKES
        function = import_path(spec.source, key=key, takes=takes)
        offered = {"adapter": adapter, "chat_template_kwargs": dict(chat_template_kwargs)}
        keywords = {name: value for name, value in offered.items() if _has_parameter(function, name)}
        if chat_template_kwargs and "chat_template_kwargs" not in keywords:
            raise ValueError(
                f"data.chat_template_kwargs is {shorten(dict(chat_template_kwargs))}, but {key}.source is a function "
                "that takes no chat_template_kwargs; add this parameter and hand it to apply_chat_template."
            )
        return call_import_path(
            spec.source,
            key=key,
            takes=takes,
            tokenizer=tokenizer,
            split=spec.split,
            size=spec.size,
            seed=seed if spec.seed is None else spec.seed,
            **keywords,
            **spec.arguments,
        )
    several = [name for name in spec.source if is_import_path(name)] if isinstance(spec.source, list) else []
    if several:
        raise ValueError(
            f"{key}.source lists {several[0]!r}, which is an import path; a list takes files and names of data sets. "
            "Give the import path alone, and let its function put the samples together."
        )
    if spec.arguments:
        raise ValueError(
            f"{key}.arguments is {spec.arguments!r}, but {key}.source is {spec.source!r}; only a source that is an "
            "import path, module:function, takes arguments. Remove them."
        )
    for name, value in (("split", spec.split if spec.split != "train" else None), ("name", spec.name)):
        if value is not None and all(_is_file(one) for one in names_of(spec.source)):
            raise ValueError(
                f"{key}.{name} is {value!r}, but {key}.source is {spec.source!r}; a file has one part alone, and all "
                f"of it is read. Remove {name}, or give the file of that part."
            )
    for one in names_of(spec.source):
        if meant := meant_import_path(one):
            raise ValueError(
                f"{key}.source is {one!r}; it takes a file, the name of a data set, or module:function of {_TAKES}. "
                f"Write {meant}."
            )
    return load_records(
        spec.source,
        tokenizer,
        split=spec.split,
        name=spec.name,
        limit=spec.size,
        require_objects=require_objects,
        adapter=adapter,
        longest_prompt=longest_prompt,
        boxes=boxes,
        chat_template_kwargs=chat_template_kwargs,
    )


def _is_file(source: str) -> bool:
    path = local_path(source)
    return path is not None and not path.is_dir()


def _has_parameter(function: Any, name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # not callable, or written in C
        return False
