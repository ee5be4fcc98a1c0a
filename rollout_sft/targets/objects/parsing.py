"""
Reads answers of the form `[{"desc": ..., "bbox_2d": [x1, y1, x2, y2]}, ...]` strictly.

- Nothing is repaired. An object is valid when `json.loads` accepts it, its keys are exactly `desc` and
  `bbox_2d` (in either order, none twice), `desc` is a string and the box is four finite numbers with `x1 <
  x2` and `y1 < y2`. A box without area is refused: its IoU with everything is 0, so it could be neither
  matched nor judged.
- A malformed object whose braces balance is dropped, counted, and reading goes on behind it.
- Where the list itself breaks (a missing comma, an element that is not an object, an object that never
  closes) reading stops: what follows has no agreed meaning, and training continues the answer from there.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum

from rollout_sft.data.truth import is_box
from rollout_sft.targets.token_text import Span

_SPACE = re.compile(r"[ \t\n\r]*")
_BRACE_OR_QUOTE = re.compile('[{}"]')
_REST_OF_STRING = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")


@dataclass(frozen=True, slots=True)
class ParsedObject:
    """
    Holds one valid object of an answer and the places of its parts in the text.

    Args:
        desc (`str`): Its description, unescaped.
        box (`tuple[float, ...]`): `x1, y1, x2, y2`.
        span (`Span`): The whole object, braces included.
        desc_span (`Span`): What stands between the quotes of the description.
        number_spans (`tuple[Span, ...]`): The four numbers, in the order of `box`.
    """

    desc: str
    box: tuple[float, ...]
    span: Span
    desc_span: Span
    number_spans: tuple[Span, ...]

    @property
    def content_end(self) -> int:
        """Returns where the last number or description ends: only structure follows it in the object."""
        return max(self.desc_span[1], self.number_spans[-1][1])


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """
    Holds what could be read from an answer.

    Args:
        objects (`tuple[ParsedObject, ...]`): The valid objects, in order.
        malformed (`int`): Complete objects that are not valid, plus one if the list broke at something else.
        unclosed (`bool`): The text ends within an object: expected of a truncated answer, malformed
        otherwise.
        body_start (`int` or `None`): The character after `[`; `None` when the text does not start with a
        list.
        complete (`bool`): The whole text is one list of valid objects.
    """

    objects: tuple[ParsedObject, ...] = ()
    malformed: int = 0
    unclosed: bool = False
    body_start: int | None = None
    complete: bool = False


def parse_answer(text: str) -> ParsedAnswer:
    """
    Reads an answer as far as it is a list of objects. O(len(text)).

    Args:
        text (`str`):
            The decoded answer; only white space may precede its `[`.

    Returns:
        `ParsedAnswer`: the valid objects with their places, and what was wrong with the rest.
    """
    reader = AnswerReader()
    reader.read(text)
    return reader.answer()


class AnswerReader:
    """
    Reads an answer while it grows; whatever the pieces, the result is that of the whole text.

    Attributes:
        objects (`list[ParsedObject]`):
            The valid objects so far, in order.
        body_start (`int` or `None`):
            The character after `[`; `None` as long as the list has not begun.
        over (`bool`):
            No continuation adds an object or makes the answer complete: the text does not begin with a list, the list
            broke, or more than white space follows its end.
    """

    def __init__(self) -> None:
        self.objects: list[ParsedObject] = []
        self.body_start: int | None = None
        self.over = False
        self._malformed = 0
        self._length = 0  # characters of the earlier pieces
        self._expected = _Expected.LIST
        # of the object that is being read:
        self._pieces: list[str] = []
        self._start = 0
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def read(self, text: str) -> None:
        """Reads the next piece. O(len(text)), and O(length) of each object that it closes."""
        at = 0
        while at < len(text) and not self.over:
            if self._expected is _Expected.BRACE:
                at = self._read_inside(text, at)
            elif (at := _skip_space(text, at)) < len(text):
                at += self._read_structure(text[at], self._length + at)
        self._length += len(text)

    def answer(self) -> ParsedAnswer:
        """Returns what was read so far, as if the answer ended here."""
        return ParsedAnswer(
            objects=tuple(self.objects),
            malformed=self._malformed,
            unclosed=self._expected is _Expected.BRACE,
            body_start=self.body_start,
            complete=self._expected is _Expected.NOTHING and not self.over and not self._malformed,
        )

    def _read_structure(self, char: str, at: int) -> int:
        """Reads a character between objects; returns 1, or 0 for a brace, which is read again as part of its object."""
        expected = self._expected
        if expected is _Expected.LIST and char == "[":
            self.body_start = at + 1
            self._expected = _Expected.FIRST
        elif expected in (_Expected.FIRST, _Expected.COMMA) and char == "]":
            self._expected = _Expected.NOTHING
        elif expected is _Expected.COMMA and char == ",":
            self._expected = _Expected.OBJECT
        elif expected in (_Expected.FIRST, _Expected.OBJECT) and char == "{":
            self._expected = _Expected.BRACE
            self._pieces, self._start = [], at
            return 0
        else:
            self.over = True
            self._malformed += expected not in (_Expected.LIST, _Expected.NOTHING)
        return 1

    def _read_inside(self, text: str, at: int) -> int:
        """Reads text of an object, up to the brace that closes it if that is there; returns where it stopped."""
        begin = at
        while at < len(text):
            if self._in_string:
                at = self._read_string(text, at)
                continue
            found = _BRACE_OR_QUOTE.search(text, at)
            if found is None:
                break
            at = found.end()
            self._in_string = found.group() == '"'
            self._depth += {"{": 1, "}": -1}.get(found.group(), 0)
            if self._depth == 0:
                self._pieces.append(text[begin:at])
                self._close_object()
                return at
        self._pieces.append(text[begin:])
        return len(text)

    def _read_string(self, text: str, at: int) -> int:
        """Reads on in a string; braces in it do not count."""
        if self._escaped:
            self._escaped = False
            return at + 1
        at = _REST_OF_STRING.match(text, at).end()  # type: ignore[union-attr]  # matches the empty string
        if at == len(text):
            return at
        # A backslash here is the last character, and the one that it escapes comes with the next piece.
        self._in_string = self._escaped = text[at] == "\\"
        return at + 1

    def _close_object(self) -> None:
        found = _read_object("".join(self._pieces), self._start)
        if found is None:
            self._malformed += 1
        else:
            self.objects.append(found)
        self._expected = _Expected.COMMA


class _Expected(Enum):
    """Says what may come next, besides white space."""

    LIST = "the start of the list"
    FIRST = "an object or the end of the list"
    OBJECT = "an object"
    BRACE = "the brace that closes the object"
    COMMA = "a comma or the end of the list"
    NOTHING = "nothing"


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None  # the pattern matches the empty string
    return match.end()


def _read_object(text: str, start: int) -> ParsedObject | None:
    """Reads an object that begins at character `start` of the answer."""
    try:
        # Pairs and not a dict: json keeps the last of two equal keys without a word.
        pairs = json.loads(text, object_pairs_hook=lambda p: p)
    except (ValueError, RecursionError):
        return None
    if sorted(key for key, _ in pairs) != ["bbox_2d", "desc"]:
        return None
    values = dict(pairs)
    if not isinstance(values["desc"], str) or not is_box(values["bbox_2d"]):
        return None
    # json accepted exactly two keys, one string and four numbers, so what looks like one of them is one.
    desc_span, masked = (0, 0), list(text)
    for match in _STRING.finditer(text):
        if text[_skip_space(text, match.end())] != ":":
            desc_span = (start + match.start() + 1, start + match.end() - 1)
        masked[match.start() : match.end()] = " " * (match.end() - match.start())
    numbers = tuple((start + m.start(), start + m.end()) for m in _NUMBER.finditer("".join(masked)))
    box = tuple(float(x) for x in values["bbox_2d"])
    return ParsedObject(values["desc"], box, (start, start + len(text)), desc_span, numbers)
