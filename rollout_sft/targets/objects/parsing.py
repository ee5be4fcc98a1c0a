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

from rollout_sft.data.truth import is_box
from rollout_sft.targets.token_text import Span

_SPACE = re.compile(r"[ \t\n\r]*")
_STRING_OR_BRACE = re.compile(r'"(?:[^"\\]|\\.)*"|[{}]|"', re.DOTALL)
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
    at = _skip_space(text, 0)
    if text[at : at + 1] != "[":
        return ParsedAnswer()
    body_start = at = at + 1
    objects: list[ParsedObject] = []
    malformed = 0
    first, complete, unclosed = True, False, False
    while (at := _skip_space(text, at)) < len(text):
        if text[at] == "]":
            complete = malformed == 0 and _skip_space(text, at + 1) == len(text)
            break
        if not first:
            if text[at] != ",":
                malformed += 1
                break
            at = _skip_space(text, at + 1)
            if at == len(text):
                break
        if text[at] != "{":
            malformed += 1
            break
        end = _closing_brace(text, at)
        if end is None:
            unclosed = True
            break
        if (found := _read_object(text, at, end)) is None:
            malformed += 1
        else:
            objects.append(found)
        at, first = end, False
    return ParsedAnswer(tuple(objects), malformed, unclosed, body_start, complete)


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None  # the pattern matches the empty string
    return match.end()


def _closing_brace(text: str, start: int) -> int | None:
    """Finds the character after the brace that closes the one at `start`; braces in strings do not count."""
    depth = 0
    for match in _STRING_OR_BRACE.finditer(text, start):
        token = match.group()
        if token == '"':  # a string that never ends swallows the rest
            return None
        depth += {"{": 1, "}": -1}.get(token, 0)
        if depth == 0:
            return match.end()
    return None


def _read_object(text: str, start: int, end: int) -> ParsedObject | None:
    try:
        # Pairs and not a dict: json keeps the last of two equal keys without a word.
        pairs = json.loads(text[start:end], object_pairs_hook=lambda p: p)
    except (ValueError, RecursionError):
        return None
    if sorted(key for key, _ in pairs) != ["bbox_2d", "desc"]:
        return None
    values = dict(pairs)
    if not isinstance(values["desc"], str) or not is_box(values["bbox_2d"]):
        return None
    # json accepted exactly two keys, one string and four numbers, so what looks like one of them is one.
    desc_span, masked = (0, 0), list(text[start:end])
    for match in _STRING.finditer(text, start, end):
        if text[_skip_space(text, match.end())] != ":":
            desc_span = (match.start() + 1, match.end() - 1)
        masked[match.start() - start : match.end() - start] = " " * (match.end() - match.start())
    numbers = tuple((start + m.start(), start + m.end()) for m in _NUMBER.finditer("".join(masked)))
    box = tuple(float(x) for x in values["bbox_2d"])
    return ParsedObject(values["desc"], box, (start, end), desc_span, numbers)
