"""
Decides what is trained inside the model's own objects: at which characters a correct expert would write which text.

    [{"desc": "cat", "bbox_2d": [10, 20, 30, 40]}, {"desc": ...
     ^         ^                 ^   ^   ^   ^   ^
     boundary  class             coordinates     boundary: `,` while a truth is open, else `]`

- The expert of an object that is matched writes its truth. The expert of any other object writes the next open truth:
  the first that no earlier object has matched. With none open it ends the list.
- A truth that only a later object matches is open until then.
- The coordinates of an object that is not matched are unknown, and so is its class where it stands behind them.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from rollout_sft.data.truth import TrueObject
from rollout_sft.targets.objects.completion import Draft
from rollout_sft.targets.objects.parsing import ParsedObject
from rollout_sft.targets.token_decisions import Decisions, token_decisions
from rollout_sft.targets.token_text import Span, SpelledText, Speller

COORD = "coord"
"""Index field: positions whose logits are trained towards a coordinate, in the prefix and in the tail."""

BOUNDARY = "boundary"
"""Index field with `expert`: positions of the prefix trained towards "another object" or "the end"."""

DESC = "desc"
"""Index field with `expert`: positions of the prefix trained towards the text of a description."""


@dataclass(slots=True)
class PrefixDecisions:
    """
    Holds the targets in the model's own objects.

    Args:
        kinds (`dict[str, list[int]]`): The decided tokens by what was asked there.
        targets (`Decisions`): Index of a token of the answer to its target.
        asked (`int`): Places that were asked about: boundaries, descriptions, numbers.
        unaligned (`int`): Those left out because their token begins in another place.
    """

    kinds: dict[str, list[int]]
    targets: Decisions = field(default_factory=dict)
    asked: int = 0
    unaligned: int = 0

    def add(self, kind: str, decisions: Decisions) -> None:
        """Takes the decisions of one place, unless an earlier place has decided the token in which they begin."""
        self.asked += 1
        if not decisions or min(decisions) in self.targets:
            self.unaligned += 1
            return
        self.targets.update(decisions)
        self.kinds[kind] += decisions


def coordinate_decisions(speller: Speller, draft: Draft, truths: Sequence[TrueObject]) -> PrefixDecisions:
    """Decides the coordinates of matched objects. Costs four short encodings for each."""
    made, tokens = PrefixDecisions({COORD: []}), draft.tokens
    for m, j in draft.pairs.items():
        found = draft.answer.objects[m]
        # Text handed to the tokenizer ends where one of the answer's tokens does: `}` cut out of `},` encodes
        # otherwise.
        behind = tokens.text[found.span[1] : tokens.ends[bisect_left(tokens.ends, found.span[1])]]
        desc_end = found.desc_span[1]
        known_from = desc_end if desc_end <= found.number_spans[0][0] else found.span[0]
        slots = _slots(found, truths[j], {COORD})
        for kind, decisions in _decide_slots(speller, tokens, found, slots, behind, known_from):
            made.add(kind, decisions)
    return made


def expert_decisions(
    speller: Speller, draft: Draft, truths: Sequence[TrueObject], *, supervise_desc: bool = True
) -> PrefixDecisions:
    """
    Boundaries, classes, and the coordinates of matched objects. Six short encodings for each object.

    Args:
        speller (`Speller`):
            Of the model's tokenizer.
        draft (`Draft`):
            The answer, and which of its objects are matched.
        truths (`Sequence[TrueObject]`):
            The ground truth, in the order in which the expert writes it.
        supervise_desc (`bool`, *optional*, defaults to `True`):
            Whether classes are asked for.

    Returns:
        `PrefixDecisions`: The targets. The boundary behind the last kept object belongs to the tail.
    """
    made, tokens = PrefixDecisions({COORD: [], BOUNDARY: [], DESC: []}), draft.tokens
    own = draft.answer.objects[: draft.kept]
    wanted = list(_wanted_truths(draft, truths))
    going_on = ["]" if truth is None else (", " if m else "") + truth.json for m, truth in enumerate(wanted)]
    going_on.append(tokens.text[own[-1].span[1] :] if own else "")
    boundary, known_from = draft.answer.body_start or 0, 0
    for m, (found, truth) in enumerate(zip(own, wanted, strict=True)):
        # The first character decides.
        asked, first, then = (boundary, boundary + 1), going_on[m][:1], going_on[m][1:]
        made.add(BOUNDARY, token_decisions(speller, tokens, asked, first, then=then, known_from=known_from))
        boundary, known_from = found.span[1], found.content_end
        if truth is None:
            continue
        slots = _slots(found, truth, {COORD, DESC})
        if m not in draft.pairs:
            slots = [replace(slot, known=slot is slots[0] and slot.kind == DESC) for slot in slots]
        for kind, decisions in _decide_slots(speller, tokens, found, slots, going_on[m + 1], found.span[0]):
            if supervise_desc or kind != DESC:
                made.add(kind, decisions)
    return made


def _wanted_truths(draft: Draft, truths: Sequence[TrueObject]) -> Iterator[TrueObject | None]:
    """Returns, for each kept object, the truth that the expert would write in its place."""
    still_open = dict.fromkeys(range(len(truths)))
    for m in range(draft.kept):
        j = draft.pairs.get(m, next(iter(still_open), None))
        yield None if j is None else truths[j]
        still_open.pop(draft.pairs.get(m, -1), None)


@dataclass(frozen=True, slots=True)
class _Slot:
    """
    Describes a part of an object that a truth fills.

    Args:
        kind (`str`): `COORD` or `DESC`.
        span (`Span`): What the model wrote.
        wanted (`str`): What the truth says.
        end (`int`): Where the content ends: before the closing quote of a description.
        known (`bool`): Whether the expert would write the truth there.
    """

    kind: str
    span: Span
    wanted: str
    end: int
    known: bool = True


def _slots(found: ParsedObject, truth: TrueObject, kinds: set[str]) -> list[_Slot]:
    """Returns the parts of an object, in the order of its text."""
    begin, end = found.desc_span
    # Whether a description ends there is part of it: its closing quote is asked for as well.
    slots = [_Slot(DESC, (begin, end + 1), json.dumps(truth.desc)[1:], end)]
    for span, number in zip(found.number_spans, truth.box, strict=True):
        slots.append(_Slot(COORD, span, json.dumps(number), span[1]))
    return sorted((slot for slot in slots if slot.kind in kinds), key=lambda slot: slot.span)


def _decide_slots(
    speller: Speller, tokens: SpelledText, found: ParsedObject, slots: Sequence[_Slot], behind: str, known_from: int
) -> Iterator[tuple[str, Decisions]]:
    """
    Kind and decisions of each known slot of one object. The slots behind it are written with the truth too, since a
    token may reach into them, and `behind` is what follows the object.
    """
    starts = [*(slot.span[0] for slot in slots[1:]), found.span[1]]
    gaps = [tokens.text[slot.span[1] : start] for slot, start in zip(slots, starts, strict=True)]
    for k, slot in enumerate(slots):
        if slot.known:
            later = [*(after.wanted for after in slots[k + 1 :]), behind]
            then = "".join(gap + wanted for gap, wanted in zip(gaps[k:], later, strict=True))
            yield slot.kind, token_decisions(speller, tokens, slot.span, slot.wanted, then=then, known_from=known_from)
        known_from = slot.end
