"""
What to train on inside the model's own answer, where its tokens stay in the input and other tokens are the
target.

Both functions answer the same question at different places: at token `i` of the answer, having read the
tokens before it, which token should the model have chosen? The answer is the first token of the *canonical*
text from the start of token `i` on (canonical: what the tokenizer makes of it). As long as the model's
tokens agree with it the question can be asked again at the next token; behind the first that differs the
context no longer agrees with the truth, and no target is right.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from rollout_sft.targets.objects.parsing import ParsedObject
from rollout_sft.targets.token_text import Speller

Decisions = dict[int, int]
"""Index of a token of the answer -> the token that should have been chosen there."""


def coordinate_decisions(
    speller: Speller,
    text: str,
    ids: Sequence[int],
    ends: Sequence[int],
    found: ParsedObject,
    numbers: Sequence[str],
) -> tuple[Decisions, int]:
    """
    The targets at the coordinate slots of one matched object.

    A slot's decisions begin at the token that holds the number's first character and go up to and including
    the first token that differs, or to the number's end. Whether the number ends where it should is part of
    it: with the truth 1 and the answer 12 in two tokens, the second one's target is what follows the 1. A
    first token may hold structure besides the number (` 12`, `12,`), but not a part of another number or of
    the description, which the truth may want changed as well: such a slot is left out and counted.

    Args:
        speller (`Speller`):
            Of the tokenizer that made `ids`.
        text, ids, ends:
            The answer: its characters, its tokens and [`Speller.spell`]'s ends.
        found (`ParsedObject`):
            The object in `text`.
        numbers (`Sequence[str]`):
            The four true numbers as they are written.

    Returns:
        `tuple[Decisions, int]`: the targets, and how many of the four slots share a token in that way.
    """
    decisions: Decisions = {}
    unaligned = 0
    desc_end, first_number = found.desc_span[1], found.number_spans[0][0]
    floor = desc_end if desc_end <= first_number else found.span[0]
    # Text handed to the tokenizer ends where one of the answer's tokens does: `}` cut out of `},` encodes
    # otherwise.
    stop = ends[bisect_right(ends, found.span[1] - 1)]
    for k, (begin, end) in enumerate(found.number_spans):
        first, start = token_at(ends, begin)
        aligned = start >= floor and first not in decisions
        floor = end
        if not aligned:
            unaligned += 1
            continue
        # The slots behind this one are written with the truth too: a token may reach into the next number.
        wanted, reached = [text[start:begin]], begin
        for (a, b), number in zip(found.number_spans[k:], numbers[k:], strict=True):
            wanted += [text[reached:a], number]
            reached = b
        wanted.append(text[reached:stop])
        wanted_ids, wanted_ends = speller.encode_with_ends("".join(wanted))
        wanted_end = begin - start + len(numbers[k])
        for j, (token, wanted_start) in enumerate(zip(wanted_ids, [0, *wanted_ends], strict=False)):
            i = first + j
            if j > 0 and wanted_start >= wanted_end and ends[i - 1] >= end:
                break
            decisions[i] = token
            if token != ids[i]:
                break
    return decisions, unaligned


def boundary_decision(
    speller: Speller, text: str, ends: Sequence[int], boundary: int, floor: int, continuation: str
) -> tuple[int, int] | None:
    """
    The target where the answer chose between another object and the end of the list.

    Args:
        speller (`Speller`):
            Of the tokenizer that made the answer.
        text, ends:
            The answer and [`Speller.spell`]'s ends.
        boundary (`int`):
            Where an object (or `[`) ends and the text goes on: the decision is the token that holds the
            character there.
        floor (`int`):
            That token may begin before the boundary (`},`), but not before this character: it would hold
            numbers.
        continuation (`str`):
            The text that should follow the boundary.

    Returns:
        `tuple[int, int]` or `None`: the token's index and its target; `None` when tokens and boundary do
        not agree.
    """
    index, start = token_at(ends, boundary)
    if start < floor:
        return None
    wanted_ids, wanted_ends = speller.encode_with_ends(text[start:boundary] + continuation)
    if wanted_ends[0] <= boundary - start:
        return None  # the tokenizer would have ended a token at the boundary: this one decides nothing
    return index, wanted_ids[0]


def token_at(ends: Sequence[int], char: int) -> tuple[int, int]:
    """Index of the token that holds character `char`, and the character at which it starts."""
    index = bisect_right(ends, char)
    return index, ends[index - 1] if index else 0
