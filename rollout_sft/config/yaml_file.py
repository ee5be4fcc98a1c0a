"""Configuration files: YAML with YAML 1.2's booleans and numbers, `extends`, and no key given twice."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def read_document(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """
    Reads a file and what it extends.

    Args:
        path (`Path`):
            The YAML file; `extends` in it is relative to it.
        seen (`tuple[Path, ...]`, *optional*):
            The files that led here.

    Returns:
        `dict[str, Any]`: the merged sections, without `extends`.

    Raises:
        `ValueError`: not YAML, no mapping, a key given twice, or a circle of `extends`; names the file.
        `FileNotFoundError`: the file or one it extends does not exist.
    """
    path = path.resolve()
    if path in seen:
        raise ValueError(f"{path.name} extends itself, by way of {', '.join(p.name for p in seen)}; break the circle.")
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration file {path}.")
    with path.open(encoding="utf-8") as stream:
        try:
            document = yaml.load(stream, Loader=_Loader)
        except yaml.YAMLError as exc:
            raise ValueError(f"{path.name} is not valid YAML: {exc}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path.name} holds {type(document).__name__}; a configuration is a mapping of sections.")
    base = document.pop("extends", None)
    if base is None:
        return document
    return merged(read_document(path.parent / str(base), (*seen, path)), document)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, mapping by mapping; anything but a mapping is replaced whole."""
    out = copy.deepcopy(dict(base))
    for key, value in over.items():
        both = isinstance(out.get(key), dict) and isinstance(value, dict)
        out[key] = merged(out[key], value) if both else copy.deepcopy(value)
    return out


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, and reads `3e-4` as a number and `off` as text, as YAML 1.2 does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ValueError(f"{self.name}, line {line}: the key {key!r} is given twice; keep one.")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_BOOL = "tag:yaml.org,2002:bool"
# YAML 1.1 takes no, off, yes and on for booleans, but `save_strategy: no` and `validate_schedule: off` are texts.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
