"""Checks the values of a configuration against the type hints of a dataclass.

A hint says everything that a key takes: its type, its choices (`Literal`), its range (`Annotated[int, Range(...)]`).
Only this module decides when a word is a boolean. YAML 1.2 reads `off`, `no`, `on` and `yes` as text: they stay text
where a key takes text, and become a boolean where the key takes a boolean.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from enum import Enum
from functools import cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from rollout_sft.config.shorten import cut, shorten

MOST_LISTED = 40
"""The most keys of a section that a message lists."""
_TRUTHS = {"yes": True, "on": True, "no": False, "off": False}


@dataclass(frozen=True, kw_only=True)
class Range:
    """
    Limits the numbers that a field takes: `Annotated[int, Range(takes="1 or more", at_least=1)]`. Accepts `None`.

    Args:
        takes (`str`):
            The range in words, for messages.
        at_least, more_than, at_most, less_than (`float`, *optional*):
            The bounds of the range.
    """

    takes: str
    at_least: float = -math.inf
    more_than: float = -math.inf
    at_most: float = math.inf
    less_than: float = math.inf

    def holds(self, value: float | None) -> bool:
        """Returns whether the value lies in the range."""
        if value is None:
            return True
        above = value > self.more_than or self.more_than == -math.inf
        below = value < self.less_than or self.less_than == math.inf
        return self.at_least <= value <= self.at_most and above and below


@dataclass(frozen=True, kw_only=True)
class Section:
    """
    Describes a mapping of the configuration: its place and what each key takes.

    Args:
        path (`str`):
            Its place in the file, such as `training`; empty for the file itself.
        hints (`Mapping[str, Any]`):
            The type hint of each key.
        elsewhere (`tuple[Section, ...]`, *optional*):
            Sections that an unknown key may have been meant for.
        moved (`Mapping[str, str]`, *optional*):
            Keys that are refused, with the reasons.
    """

    path: str
    hints: Mapping[str, Any]
    elsewhere: tuple[Section, ...] = ()
    moved: Mapping[str, str] = field(default_factory=dict)

    def key(self, name: Any) -> str:
        """Returns the path of a key of this section."""
        return f"{self.path}.{cut(str(name))}" if self.path else cut(str(name))

    def takes(self, name: str) -> str:
        """Says what a key takes."""
        return _in_words(self.hints[name])

    def read(self, values: Any) -> dict[str, Any]:
        """
        Checks a mapping of keys to values and converts each value to its type.

        A mapping for a dataclass stays a mapping; [`build`] turns it into the dataclass.

        Raises:
            `ValueError`: `values` is not a mapping, a key is unknown, or a value has the wrong type or is out of its
                range; the message names the key, the value and what the key takes.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"{self.path} is {shorten(values)}; it takes a mapping of keys to values.")
        for name in values:
            if name not in self.hints:
                raise ValueError(self._unknown(name))
        return {name: self._value(name, value) for name, value in values.items()}

    def _unknown(self, name: Any) -> str:
        key = self.key(name)
        if name in self.moved:
            return f"{key} is refused: {self.moved[name]}."
        for other in self.elsewhere:
            if name in other.hints:
                return f"unknown key {key}: it belongs under {other.path}:, where it takes {other.takes(name)}."
        near = difflib.get_close_matches(str(name), self.hints, n=1, cutoff=0.6)
        near = near or [known for known in self.hints if len(str(name)) > 3 and str(name) in known]
        if near:
            return f"unknown key {key}: the nearest valid key is {near[0]}, which takes {self.takes(near[0])}."
        if len(self.hints) > MOST_LISTED:
            where = "docs/configuration.md says where they are listed"
            return f"unknown key {key}: none of the {len(self.hints)} keys of {self.path} is like it; {where}."
        return f"unknown key {key}: {self.path or 'the file'} takes {', '.join(sorted(self.hints))}."

    def _value(self, name: str, value: Any) -> Any:
        hint, ranges = self.hints[name], []
        if typing.get_origin(hint) is typing.Annotated:
            hint, *ranges = typing.get_args(hint)
        if dataclasses.is_dataclass(hint) or hint is Mapping:  # a section that is read separately
            if not isinstance(value, Mapping | typing.cast(type, hint)):
                raise self._refused(name, value, self.takes(name))
            return value
        accepts = typing.get_args(hint) or (hint,)
        if bool in accepts and isinstance(value, str):
            value = _TRUTHS.get(value.lower(), value)
        _reject_words(self.key(name), value)
        if isinstance(value, bool) and not {bool, Any} & set(accepts):
            raise self._refused(name, value, self.takes(name))
        try:
            typed = _adapter(hint).validate_python(value)
        except (ValidationError, RecursionError):
            finite = "a finite number" if isinstance(value, float) and not math.isfinite(value) else None
            percent = _percent(value) if float in accepts else ""
            raise self._refused(name, value, (finite or self.takes(name)) + percent) from None
        for bounds in ranges:
            if not bounds.holds(typed):
                raise self._refused(name, typed, bounds.takes)
        return typed

    def _refused(self, name: str, value: Any, takes: str) -> ValueError:
        return ValueError(f"{self.key(name)} is {shorten(value)}; it takes {takes}.")


def section_of(
    path: str,
    owner: type,
    *,
    keep: Callable[[dataclasses.Field[Any]], bool] = lambda spec: True,
    elsewhere: tuple[Section, ...] = (),
    moved: Mapping[str, str] = types.MappingProxyType({}),
) -> Section:
    """Makes the section whose keys are the fields of a dataclass, or those that `keep` chooses."""
    hints = _hints(owner)
    names = [spec.name for spec in dataclasses.fields(owner) if keep(spec)]
    return Section(path=path, hints={name: hints[name] for name in names}, elsewhere=elsewhere, moved=moved)


def build(owner: type, path: str, values: Any, *, moved: Mapping[str, str] = types.MappingProxyType({})) -> Any:
    """
    Makes a dataclass from a section's values.

    Args:
        owner (`type`):
            The dataclass.
        path (`str`):
            The section, for messages.
        values (`Any`):
            A mapping of keys to values; or an object of that class, which is returned.
        moved (`Mapping[str, str]`, *optional*):
            Keys that are refused, with the reasons.

    Raises:
        `ValueError`: for the reasons of [`Section.read`], or because a key without a default is missing.
    """
    if isinstance(values, owner):
        return values
    section = section_of(path, owner, moved=moved)
    typed = section.read(values)
    for spec in dataclasses.fields(owner):
        if spec.default is MISSING and spec.default_factory is MISSING and spec.name not in typed:
            raise ValueError(f"{path}.{spec.name} is missing; it takes {section.takes(spec.name)}.")
    return owner(**typed)


def check_fields(made: Any, path: str) -> None:
    """Checks the fields of a dataclass made in Python like those of a file; raises `ValueError`."""
    section_of(path, type(made)).read({spec.name: getattr(made, spec.name) for spec in dataclasses.fields(made)})


def enum_values(annotation: Any) -> Iterator[str]:
    """Yields the values of the enumerations in a type annotation, such as `IntervalStrategy | str`."""
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        yield from (str(member.value) for member in annotation)
    for inner in typing.get_args(annotation):
        yield from enum_values(inner)


@cache
def _hints(owner: type) -> dict[str, Any]:
    return typing.get_type_hints(owner, include_extras=True)


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))


def _reject_words(path: str, value: Any) -> None:
    """Refuses `off` and similar words in a mapping of any values, where it may be meant as a boolean or as text."""
    for key, inner in value.items() if isinstance(value, Mapping) else ():
        if isinstance(inner, str) and inner.lower() in _TRUTHS:
            raise ValueError(f"{path}.{cut(str(key))} is {inner!r}, which is text in YAML 1.2; it takes true or false.")
        _reject_words(f"{path}.{cut(str(key), 40)}", inner)


def _percent(value: Any) -> str:
    """Says how a percentage, which YAML reads as text, is written as a number."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?) ?%", value) if isinstance(value, str) else None
    return f"; {value} is {float(found[1]) / 100:g}" if found else ""


def _in_words(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _in_words(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        members = typing.get_args(hint)
        if any(enum_values(hint)):  # with them, `str` only says that they may be given as text
            members = tuple(member for member in members if member is not str)
        return " | ".join(_in_words(member) for member in members)
    if isinstance(hint, type) and any(enum_values(hint)):
        return " | ".join(enum_values(hint))
    if origin is typing.Literal:
        return " | ".join(str(choice) for choice in typing.get_args(hint))
    if origin in (dict, Mapping) or hint in (dict, Mapping) or dataclasses.is_dataclass(hint):
        return "a mapping"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text", list: "a list"}
    words |= {type(None): "nothing", Any: "a value"}
    return words.get(origin or hint) or str(getattr(hint, "__name__", hint))
