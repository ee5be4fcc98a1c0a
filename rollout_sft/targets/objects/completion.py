"""
Builds `Y_train`: the longest prefix of the generated tokens that ends with a valid object, and the missing
objects behind it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rollout_sft.data.truth import TrueObject
from rollout_sft.targets.objects.parsing import ParsedAnswer, ParsedObject, parse_answer
from rollout_sft.targets.token_text import SpelledText, Speller

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
    speller: Speller, response_ids: Sequence[int], truths: Sequence[TrueObject], match: Match, where: str
) -> tuple[Draft, ParsedAnswer]:
    """
    Cuts a generated answer behind its last valid object and appends every unmatched truth and `]`.

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
        unmatched = [truth.json for j, truth in enumerate(truths) if j not in matched]
        straddled = text[begin:cut] if answer.body_start is not None else "["
        tail = straddled + (", " if found and unmatched else "") + ", ".join(unmatched) + "]"
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
        "use a tokenizer that covers the objects, or change their desc or bbox_2d."
    )


def _tokens_up_to(ends: Sequence[int], cut: int) -> int:
    """Counts the tokens that end at or before character `cut`, without trailing ones that hold no character."""
    length = bisect_right(ends, cut)
    while length and ends[length - 1] == (ends[length - 2] if length > 1 else 0):
        length -= 1
    return length
