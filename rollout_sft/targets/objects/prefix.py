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

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from rollout_sft.data.truth import TrueObject
from rollout_sft.targets.objects.completion import Draft
from rollout_sft.targets.objects.parsing import ParsedObject
from rollout_sft.targets.objects.spelling import COORD, DESC, Slot, filled, separator, slots_of
from rollout_sft.targets.token_decisions import Decisions, token_decisions
from rollout_sft.targets.token_text import SpelledText, Speller

BOUNDARY = "boundary"
"""Index field with `expert`: positions of the prefix trained towards "another object" or "the end"."""

_SPACE = re.compile(r"\s*")


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


def coordinate_decisions(
    speller: Speller, draft: Draft, truths: Sequence[TrueObject], *, ensure_ascii: bool = False
) -> PrefixDecisions:
    """Decides the coordinates of matched objects. Costs four short encodings for each."""
    made, tokens = PrefixDecisions({COORD: []}), draft.tokens
    for m, j in draft.pairs.items():
        found = draft.answer.objects[m]
        # Text handed to the tokenizer ends where one of the answer's tokens does: `}` cut out of `},` encodes
        # otherwise.
        behind = tokens.text[found.span[1] : tokens.ends[bisect_left(tokens.ends, found.span[1])]]
        desc_end = found.desc_span[1]
        known_from = desc_end if desc_end <= found.number_spans[0][0] else found.span[0]
        slots = slots_of(tokens.text, found, truths[j], ensure_ascii=ensure_ascii)
        slots = [slot for slot in slots if slot.kind == COORD]
        for kind, decisions in _decide_slots(speller, tokens, found, slots, behind, known_from):
            made.add(kind, decisions)
    return made


def expert_decisions(
    speller: Speller,
    draft: Draft,
    truths: Sequence[TrueObject],
    *,
    supervise_desc: bool = True,
    ensure_ascii: bool = False,
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
        ensure_ascii (`bool`, *optional*, defaults to `False`):
            Whether truths are written with escapes.

    Returns:
        `PrefixDecisions`: The targets. The boundary behind the last kept object belongs to the tail.
    """
    made, tokens = PrefixDecisions({COORD: [], BOUNDARY: [], DESC: []}), draft.tokens
    own = draft.answer.objects[: draft.kept]
    wanted = list(_wanted_truths(draft, truths))
    filled_slots = [
        [] if truth is None else slots_of(tokens.text, found, truth, ensure_ascii=ensure_ascii)
        for found, truth in zip(own, wanted, strict=True)
    ]
    ends = [draft.answer.body_start or 0, *(found.span[1] for found in own)]
    # The first character that is no white space decides.
    places = [_SPACE.match(tokens.text, end).end() for end in ends]  # type: ignore[union-attr]
    commas = [separator(tokens.text, own, ends[0], behind=m - 1).lstrip() for m in range(1, len(own))]
    going_on = [
        "]" if truth is None else (commas[m - 1] if m else "") + filled(tokens.text, own[m], filled_slots[m])
        for m, truth in enumerate(wanted)
    ]
    going_on.append(tokens.text[places[-1] :])
    known_from = 0
    for m, (found, truth) in enumerate(zip(own, wanted, strict=True)):
        asked, first, then = (places[m], places[m] + 1), going_on[m][:1], going_on[m][1:]
        made.add(BOUNDARY, token_decisions(speller, tokens, asked, first, then=then, known_from=known_from))
        known_from = found.content_end
        if truth is None:
            continue
        slots = filled_slots[m]
        if m not in draft.pairs:
            slots = [replace(slot, known=slot is slots[0] and slot.kind == DESC) for slot in slots]
        behind = tokens.text[ends[m + 1] : places[m + 1]] + going_on[m + 1]
        for kind, decisions in _decide_slots(speller, tokens, found, slots, behind, found.span[0]):
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


def _decide_slots(
    speller: Speller, tokens: SpelledText, found: ParsedObject, slots: Sequence[Slot], behind: str, known_from: int
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
