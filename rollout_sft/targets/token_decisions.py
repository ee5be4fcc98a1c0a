"""
Turns "at this character a correct expert would write this text" into targets for single tokens.

A model is trained inside an answer that it wrote itself: its tokens stay in the input, and the expert's next token is
the target. The expert's text is known only at a few places (a wrong number, the choice between going on and stopping),
and tokens may cross the borders of these places. One rule works for every tokenizer:

- Where the answer says what the expert would write, its own tokens are the targets, canonical or not.
- Elsewhere the expert writes its text from the start of the token that holds the first character asked about.
- Its tokens are compared with the answer's one by one. Each of them is the target of its position.
- The first token that differs is the last target. Behind it the input differs from what the expert would have
  written, so no target is known there, and the weight is 0.
- If all tokens agree, the last target is the token that holds the last character asked about.

The price is one encoding of a short text for each place.
"""

from __future__ import annotations

from rollout_sft.targets.token_text import Span, SpelledText, Speller

Decisions = dict[int, int]
"""Index of a token of the answer -> the token that the expert would have chosen there."""


def token_decisions(
    speller: Speller, answer: SpelledText, asked: Span, wanted: str, *, then: str = "", known_from: int = 0
) -> Decisions:
    """
    Returns the targets where a correct expert would have written `wanted` instead of `answer.text[begin:end]`.

    Args:
        speller (`Speller`):
            The speller of the tokenizer that made the answer.
        answer (`SpelledText`):
            The model's own answer, from [`Speller.read`].
        asked (`tuple[int, int]`):
            The characters `begin` and `end` of the answer's own text that is judged.
        wanted (`str`):
            What the expert writes there.
        then (`str`, *optional*, defaults to `""`):
            What the expert writes behind it, as far as it is known. It is never a target for its own sake, but a token
            may reach into it, and where the answer goes on when `wanted` ends, its first token is the target.
        known_from (`int`, *optional*, defaults to 0):
            The first character from which on the expert would have written what the answer says up to `begin`. A token
            that holds `begin` and starts before this character holds text of which nothing is known: no target.

    Returns:
        `dict[int, int]`: index of a token of the answer to its target; empty where nothing is known.

    Example without boxes (a sum with one token per digit, where the model's first digit of the result is wrong):

        >>> from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> from rollout_sft.targets import Speller, token_decisions
        >>> backend = Tokenizer(models.WordLevel({c: i for i, c in enumerate("0123456789+=;[]") } | {"<eos>": 15}))
        >>> backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        >>> backend.decoder = decoders.Fuse()
        >>> speller = Speller(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>"))

        >>> answer = speller.read(speller.encode("17+8=35;"))  # the model's own: each of these ids stays in the input
        >>> begin, end = 5, 7  # the characters of 35
        >>> decisions = token_decisions(speller, answer, (begin, end), "25", then=";")
        >>> {i: (answer.text[i], speller.read([target]).text) for i, target in decisions.items()}
        {5: ('3', '2')}

        Behind the wrong 3 nothing is known. Where the sum is right as far as it goes, its missing end is the target:

        >>> answer = speller.read(speller.encode("17+8=2;"))
        >>> decisions = token_decisions(speller, answer, (5, 6), "25", then=";")
        >>> {i: (answer.text[i], speller.read([target]).text) for i, target in decisions.items()}
        {5: ('2', '2'), 6: (';', '5')}
    """
    begin, end = asked
    first, start = answer.token_at(begin)
    decisions: Decisions = {}
    if start < known_from:
        return decisions
    expert = answer.text[start:begin] + wanted + then
    if answer.text[begin:end] == wanted:
        i = first
        while expert.startswith(answer.text[start : answer.ends[i]]):
            decisions[i] = answer.ids[i]
            if answer.ends[i] >= end:
                return decisions
            i += 1
        # This token holds what is right, and behind it something else.
        first, again = answer.token_at(answer.ends[i - 1] if i else 0)
        expert = expert[again - start :]
        decisions = {i: token for i, token in decisions.items() if i < first}
    for i, token in enumerate(speller.encode(expert), first):
        decisions[i] = token
        # Up to here both wrote the same text, so what both have reached is where the answer's token ends.
        if token != answer.ids[i] or answer.ends[i] >= max(end, begin + len(wanted)):
            break
    return decisions
