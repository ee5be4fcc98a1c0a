"""
Builds `Y_train`: the longest prefix of the generated tokens that ends with a valid object, and the missing
objects behind it.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rollout_sft.data.truth import TrueObject
from rollout_sft.targets.objects.parsing import ParsedAnswer, ParsedObject, parse_answer
from rollout_sft.targets.objects.spelling import in_form_of, separator
from rollout_sft.targets.token_text import SpelledText, Speller

_CLOSING = re.compile(r"\s{0,32}\]")
"""An endless run of white space is no way to end a list."""

Match = Callable[[Sequence[ParsedObject], Sequence[TrueObject]], dict[int, int]]
"""Maps predicted and true objects to a dict of predicted index to true index."""


@dataclass(frozen=True, slots=True)
class Draft:
    """
    Holds an answer to train on, without its end token.

    Args:
        tokens (`SpelledText`): The model's own tokens, then those written behind them.
        prefix_length (`int`): How many tokens are the model's own, exactly as it generated them.
        answer (`ParsedAnswer`): What they parse to.
        kept (`int`): How many objects of `answer` are the model's own; the rest was appended.
        pairs (`dict[int, int]`): Kept objects that are matched, to their truths.
    """

    tokens: SpelledText
    prefix_length: int
    answer: ParsedAnswer
    kept: int
    pairs: dict[int, int]


def draft_answer(
    speller: Speller,
    response_ids: Sequence[int],
    truths: Sequence[TrueObject],
    match: Match,
    where: str,
    *,
    ensure_ascii: bool = False,
) -> tuple[Draft, ParsedAnswer]:
    """
    Cuts a generated answer behind its last valid object and appends every unmatched truth and `]`.

    The truths are appended in the form of that object. An end of the list that is right stays as the model wrote it.

    A token that reaches beyond the cut (`},` or `}]`) cannot be kept, and tokens are never re-encoded in
    the middle of a prefix: the prefix ends before that token, and what it held of the object (`}`) is
    written anew in front of the appended text.

    Args:
        speller (`Speller`):
            Of the model's tokenizer.
        response_ids (`Sequence[int]`):
            The tokens as generated, without an end token; none for the reference answer.
        truths (`Sequence[TrueObject]`):
            The ground truth, in the order in which it is appended.
        match (`Match`):
            Decides what is already there.
        where (`str`):
            Begins the error message.
        ensure_ascii (`bool`, *optional*, defaults to `False`):
            Whether truths are written with escapes.

    Returns:
        `tuple[Draft, ParsedAnswer]`: what to train on, and how the generated answer itself was read.

    Raises:
        `ValueError`: the tokenizer cannot write the appended text.
    """
    text, ends = speller.spell(response_ids)
    answer = parse_answer(text)
    for kept in range(len(answer.objects), -1, -1):
        found = answer.objects[:kept]
        cut = found[-1].span[1] if found else (answer.body_start or 0)
        length = _tokens_up_to(ends, cut)
        begin = ends[length - 1] if length else 0
        pairs = match(found, truths)
        matched = set(pairs.values())
        unmatched = [truth for j, truth in enumerate(truths) if j not in matched]
        if not unmatched and kept == len(answer.objects) and (end := _own_end(text, cut, ends, answer)):
            tokens = speller.read(response_ids[:end])
            return Draft(tokens, length, parse_answer(tokens.text), kept, pairs), answer
        straddled = text[begin:cut] if answer.body_start is not None else "["
        tail = straddled + _appended(text, answer, found, unmatched, ensure_ascii) + "]"
        ids = [*response_ids[:length], *speller.encode(tail)]
        tokens = speller.read(ids)
        if tokens.text == text[:begin] + tail:
            return Draft(tokens, length, parse_answer(tokens.text), kept, pairs), answer
        if begin == cut or not found:
            break
        # The tokenizer writes what was straddled differently (normalised, say): that object has to go as
        # well.
    raise ValueError(
        f"{where}: the tokenizer turns {tail!r} into {tokens.text[begin:]!r}, which no model should learn; "
        "use a tokenizer that covers the objects, or change their desc or bbox_2d; rollout_matching.ensure_ascii: true "
        "escapes characters beyond ASCII."
    )


def _appended(
    text: str, answer: ParsedAnswer, found: Sequence[ParsedObject], truths: Sequence[TrueObject], ensure_ascii: bool
) -> str:
    """Writes truths behind the objects that are kept, and in the form of the last one."""
    if not truths:
        return ""
    if not found:
        return ", ".join(truth.as_json(ensure_ascii=ensure_ascii) for truth in truths)
    written = [in_form_of(text, found[-1], truth, ensure_ascii=ensure_ascii) for truth in truths]
    comma = separator(text, found, answer.body_start or 0, behind=len(found) - 1)
    return comma + comma.join(written)


def _own_end(text: str, cut: int, ends: Sequence[int], answer: ParsedAnswer) -> int | None:
    """Counts the tokens up to the list's `]`, if it ends at `cut` and only white space shares the last one."""
    closing = _CLOSING.match(text, cut)
    if closing is None or answer.body_start is None:
        return None
    tokens = bisect_left(ends, closing.end()) + 1
    return tokens if not text[closing.end() : ends[tokens - 1]].strip() else None


def _tokens_up_to(ends: Sequence[int], cut: int) -> int:
    """Counts the tokens that end at or before character `cut`, without trailing ones that hold no character."""
    length = bisect_right(ends, cut)
    while length and ends[length - 1] == (ends[length - 2] if length > 1 else 0):
        length -= 1
    return length
