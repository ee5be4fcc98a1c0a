"""The tokenizer of the digits: 96 tokens, a coordinate and a digit one token each."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from examples.digits.canvas import ANSWER, CANVAS, CODES, PATCH, ROW, code_name

_PAD, _EOS, _UNK = "<pad>", "<eos>", "<unk>"
JSON = ["[", "]", '{"desc": ', ', "bbox_2d": [', ", ", "]}"]


def build_digits_tokenizer() -> PreTrainedTokenizerFast:
    """
    Makes the tokenizer; `]}` and the other pieces of JSON are one token each as well.

    A coordinate is the same token in the canvas and in the answer. A digit is a token together with its
    quotes, so that the class 4 and the coordinate 4 differ.
    """
    words = [ROW, ANSWER]
    words += [code_name(k) for k in range(CODES)]
    words += [str(x) for x in range(0, CANVAS + 1, PATCH)]
    words += [f'"{digit}"' for digit in range(10)]
    return word_tokenizer([*words, *JSON])


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Makes a tokenizer in which each word is a token: names in angle brackets, numbers, digits in quotes, JSON."""
    vocabulary = {word: i for i, word in enumerate([_PAD, _EOS, _UNK, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNK))
    # The longest piece first: `, "bbox_2d": [` begins with `, `.
    pieces = "|".join(re.escape(piece) for piece in sorted(JSON, key=len, reverse=True))
    pattern = Regex(rf'<[a-z0-9_|]+>|\d+|"\d"|{pieces}')
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=_PAD, eos_token=_EOS, unk_token=_UNK, clean_up_tokenization_spaces=False
    )
