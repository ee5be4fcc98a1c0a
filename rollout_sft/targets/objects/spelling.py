"""
Writes truths as an answer is written: in its separators, its order of keys, and its characters where they are right.

A model may write `},{` or `}, {`, an escape or the character itself, `10.0` for 10. All of these are right, and so a
target in them is the model's own token. The form of an object is the text between its slots, the
description and the four numbers; a truth in the form of an object of the answer is that object with other slots.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rollout_sft.data.truth import TrueObject, text_as_json
from rollout_sft.targets.objects.parsing import ParsedObject
from rollout_sft.targets.token_text import Span

_CHARACTER = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u....|\\.|[^\\]", re.DOTALL)
_COMMA = re.compile(r"\s*,\s*")
_SPACE = re.compile(r"\s*")

COORD = "coord"
"""Index field: positions whose logits are trained towards a coordinate, in the prefix and in the tail."""

DESC = "desc"
"""Index field with `expert`: positions of the prefix trained towards the text of a description."""


@dataclass(frozen=True, slots=True)
class Slot:
    """
    Describes a part of an object that a truth fills.

    Args:
        kind (`str`): `COORD` or `DESC`.
        span (`Span`): What the model wrote. Of a description the closing quote belongs to it: whether the description
            ends there is asked for as well.
        wanted (`str`): What the truth says, in the model's characters as far as they are right.
        end (`int`): Where the content ends: before the closing quote of a description.
        known (`bool`): Whether the expert would write the truth there.
    """

    kind: str
    span: Span
    wanted: str
    end: int
    known: bool = True


def slots_of(text: str, found: ParsedObject, truth: TrueObject, *, ensure_ascii: bool) -> list[Slot]:
    """Returns the five slots of an object, filled with a truth, in the order of the answer's text."""
    begin, end = found.desc_span
    wanted = _in_characters_of(text[begin:end], truth.desc, ensure_ascii) + '"'
    slots = [Slot(DESC, (begin, end + 1), wanted, end)]
    for span, number in zip(found.number_spans, truth.box, strict=True):
        own = text[span[0] : span[1]]
        slots.append(Slot(COORD, span, own if json.loads(own) == number else json.dumps(number), span[1]))
    return sorted(slots, key=lambda slot: slot.span)


def in_form_of(text: str, found: ParsedObject, truth: TrueObject, *, ensure_ascii: bool) -> str:
    """Returns another truth in the form of an object of the answer `text`, but in the characters of references."""
    wanted = {COORD: iter([json.dumps(number) for number in truth.box])}
    wanted[DESC] = iter([text_as_json(truth.desc, ensure_ascii=ensure_ascii)[1:]])
    slots = slots_of(text, found, truth, ensure_ascii=ensure_ascii)
    return filled(text, found, [replace(slot, wanted=next(wanted[slot.kind])) for slot in slots])


def filled(text: str, found: ParsedObject, slots: Sequence[Slot]) -> str:
    """Returns an object of the answer `text` with all of its slots filled."""
    pieces, at = [], found.span[0]
    for slot in slots:
        pieces += [text[at : slot.span[0]], slot.wanted]
        at = slot.span[1]
    return "".join([*pieces, text[at : found.span[1]]])


def separator(text: str, objects: Sequence[ParsedObject], body_start: int, behind: int) -> str:
    """
    Returns what the answer writes between object `behind` and another one.

    Args:
        text (`str`):
            The answer.
        objects (`Sequence[ParsedObject]`):
            Its valid objects; at least one.
        body_start (`int`):
            The character after `[`.
        behind (`int`):
            The object in front of the separator.
    """
    for first in (behind, *range(behind)):
        if first + 1 < len(objects):
            between = text[objects[first].span[1] : objects[first + 1].span[0]]
            if _COMMA.fullmatch(between):
                return between
    lead = text[body_start : objects[0].span[0]]
    if lead and _SPACE.fullmatch(lead):  # a list that begins on a new line goes on on new lines
        return "," + lead
    (_, first_end), (second, _) = sorted(objects[0].number_spans)[:2]
    return "," if second == first_end + 1 else ", "


def _in_characters_of(own: str, desc: str, ensure_ascii: bool) -> str:
    """
    Returns a description as JSON, without quotes, that begins with the model's own characters as far as they agree.

    Args:
        own (`str`):
            What the model wrote between the quotes.
        desc (`str`):
            What it should say.
        ensure_ascii (`bool`):
            Whether the rest is written with escapes.
    """
    agreed = 0  # characters of `desc`
    for match in _CHARACTER.finditer(own):
        character = json.loads(f'"{match.group()}"')
        if not desc.startswith(character, agreed):
            return own[: match.start()] + text_as_json(desc[agreed:], ensure_ascii=ensure_ascii)[1:-1]
        agreed += len(character)
    return own + text_as_json(desc[agreed:], ensure_ascii=ensure_ascii)[1:-1]
