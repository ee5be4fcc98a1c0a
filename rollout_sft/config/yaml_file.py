"""Reads configuration files: YAML with the booleans and numbers of YAML 1.2, and `extends`; refuses duplicate keys.

A damaged or hostile file is refused early. Its size, the depth of its nesting and the number of its values are limited;
an alias counts as all the values that it stands for.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rollout_sft.config.shorten import cut, shorten

MAX_BYTES = 256 * 1024
"""Limit for a file and all files that it extends."""
MAX_DEPTH = 32
MAX_VALUES = 5000
MAX_FILES = 16
_MAX_DIGITS = 40


def read_document(path: Path) -> dict[str, Any]:
    """
    Reads a file and what it extends.

    Args:
        path (`Path`):
            The YAML file; `extends` in it is relative to it.

    Returns:
        `dict[str, Any]`: the merged sections, without `extends`.

    Raises:
        `ValueError`: the file is not UTF-8, not YAML or not a mapping, gives a key twice, extends itself, or exceeds a
            limit; the message names the file, and the line if there is one.
        `FileNotFoundError`: the file or one it extends does not exist.
    """
    documents: list[dict[str, Any]] = []
    seen: list[Path] = []
    left = MAX_BYTES
    following: Path | None = path
    while following is not None:
        current = _resolve(following, extended_by=seen[-1] if seen else None)
        if current in seen:
            names = cut(", ".join(p.name for p in seen))
            raise ValueError(f"{cut(current.name)} extends itself, by way of {names}; break the circle.")
        if len(seen) == MAX_FILES:
            raise ValueError(f"{cut(path.name)} extends more than {MAX_FILES - 1} files one after another; merge some.")
        seen.append(current)
        text = _read(current, left)
        left -= len(text)
        document = _parse(text, current.name)
        base = document.pop("extends", None)
        if base is not None and not isinstance(base, str):
            raise ValueError(f"{cut(current.name)}: extends is {shorten(base)}; it takes the path of a file.")
        following = None if base is None else current.parent / base
        documents.append(document)
    out = documents.pop()
    while documents:
        out = merged(out, documents.pop())
    return out


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `base` with the values of `over`: merges mappings key by key, and replaces all other values."""
    out = copy.deepcopy(dict(base))
    for key, value in over.items():
        both = isinstance(out.get(key), dict) and isinstance(value, dict)
        out[key] = merged(out[key], value) if both else copy.deepcopy(value)
    return out


def _resolve(path: Path, *, extended_by: Path | None) -> Path:
    try:
        resolved = path.resolve()
        if resolved.is_file():
            return resolved
    except (OSError, ValueError) as error:  # too long, or with a zero byte
        raise ValueError(f"{shorten(str(path))} is no path of a file: {cut(str(error))}.") from None
    where = "" if extended_by is None else f", which {cut(extended_by.name)} extends; the path is relative to that file"
    raise FileNotFoundError(f"there is no configuration file {cut(str(resolved), 400)}{where}.")


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as stream:
            text = stream.read(limit + 1)
    except OSError as error:
        raise ValueError(f"{cut(path.name)} cannot be read: {error.strerror}.") from None
    if len(text) > limit:
        raise ValueError(
            f"{cut(path.name)} is larger than {limit} bytes, the rest of the {MAX_BYTES} that a configuration and "
            "all files that it extends may have."
        )
    return text


def _parse(raw: bytes, name: str) -> dict[str, Any]:
    name = cut(name)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{name}, line {line}: not UTF-8 ({error.reason}); save the file as UTF-8.") from None
    try:
        document = yaml.load(text, Loader=_Loader)
    except _Refused as refused:
        raise ValueError(f"{name}, line {refused.line}: {refused}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise ValueError(f"{name}{where}: not valid YAML: {cut(problem, 300)}.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not valid YAML: {cut(str(error), 300)}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{name} holds {type(document).__name__}; a configuration is a mapping of sections.")
    return document


class _Refused(Exception):
    """Raised for valid YAML that a configuration may not hold."""

    def __init__(self, message: str, mark: yaml.Mark):
        super().__init__(message)
        self.line = mark.line + 1


class _Loader(yaml.SafeLoader):
    """Loads YAML within limits; refuses duplicate keys, and reads `3e-4` as a number and `off` as text (YAML 1.2)."""

    def __init__(self, stream: Any):
        super().__init__(stream)
        self._open = 0  # how many nodes are being composed, one within the other
        self._measured: dict[int, tuple[int, int]] = {}  # for each finished node its number of values and its depth

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark, is_alias = self.peek_event().start_mark, self.check_event(yaml.AliasEvent)
        self._open += 1
        self._limit(0, self._open, mark)
        node = super().compose_node(parent, index)
        self._open -= 1
        if not is_alias:
            self._measure(node, mark)
        elif id(node) not in self._measured:
            raise _Refused("an alias stands for something that holds it.", mark)
        return node

    def _measure(self, node: yaml.Node | None, mark: yaml.Mark) -> None:
        parts: list[Any] = [] if node is None or isinstance(node, yaml.ScalarNode) else node.value
        children = [child for part in parts for child in (part if isinstance(part, tuple) else (part,))]
        values = 1 + sum(self._measured[id(child)][0] for child in children)
        depth = 1 + max((self._measured[id(child)][1] for child in children), default=0)
        self._limit(values, depth, mark)
        self._measured[id(node)] = values, depth

    def _limit(self, values: int, depth: int, mark: yaml.Mark) -> None:
        if depth > MAX_DEPTH:
            raise _Refused(f"more than {MAX_DEPTH} mappings and lists lie within each other.", mark)
        if values > MAX_VALUES or len(self._measured) > MAX_VALUES:
            raise _Refused(f"more than {MAX_VALUES} values, aliases counted as what they stand for.", mark)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ArithmeticError, LookupError, TypeError, ValueError):  # such as `!!int x`, or `0x` alone
            tag = cut(str(node.tag).rpartition(":")[2], 20)
            raise _Refused(f"{shorten(node.value)} is no {tag}.", node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _Refused("a key is a list or a mapping; keys are texts.", key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise _Refused(f"the key {shorten(key)} is given twice; keep one.", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        if len(node.value) > _MAX_DIGITS:
            raise _Refused(
                f"a number of {len(node.value)} characters; at most {_MAX_DIGITS} are read.", node.start_mark
            )
        return self.construct_yaml_int(node) if node.tag == _INT else self.construct_yaml_float(node)


_BOOL, _INT, _FLOAT, _DATE = (f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "timestamp"))
# YAML 1.1 reads no, off, yes and on as booleans, but `save_strategy: no` and `validate_schedule: off` are texts. It
# also reads 2024-01-31 as a date, and fails at 2024-13-01; no key takes a date.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOL, _DATE)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_FLOAT, re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))
for _tag in (_INT, _FLOAT):
    _Loader.add_constructor(_tag, _Loader.construct_number)
_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in _Loader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
}
