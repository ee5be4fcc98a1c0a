"""Tokenizers of every kind that matters for supervision, built here; and how their tokens read, found the slow way."""

import json
from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from examples.digits.tokenizer import build_digits_tokenizer


def wrap(tokenizer, **kwargs):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"eos_token": "<eos>", **kwargs})


def some_json():
    boxes = [[7 * k % 100, 13 * k % 90, 7 * k % 100 + k % 60 + 1, 13 * k % 90 + k % 150 + 1] for k in range(400)]
    words = ["cat", "dog", "traffic light", "3"]
    objects = [{"desc": words[k % 4], "bbox_2d": box} for k, box in enumerate(boxes)]
    return [json.dumps(objects[k : k + 3]) for k in range(0, 399, 3)]


def byte_level_bpe(vocab_size, *, within_words):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=within_words)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False
    )
    tokenizer.train_from_iterator(some_json(), trainer)
    return wrap(tokenizer)


def sentencepiece_like(*, more_merges=()):
    """Puts a space before whatever it encodes and takes it away when it decodes, as Llama's first tokenizer does."""
    pieces = ["<unk>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += [chr(c) for c in range(33, 127)] + ["]}", "▁{", "▁[", "12", "▁1", "▁12"]
    merges = [("]", "}"), ("▁", "{"), ("▁", "["), ("1", "2"), ("▁", "1"), ("▁1", "2"), *more_merges]
    pieces += [piece for pair in more_merges for piece in (pair[0], "".join(pair))]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrap(tokenizer)


def straddling():
    """Characters, and tokens that hold parts of two numbers, of a description and a number, or of two objects."""
    tokenizer = byte_level_bpe(257, within_words=False)
    tokenizer.add_tokens([*(f"{k}, 1" for k in range(10)), ", 2", 't", "bbox_2d": [', '"bbox_2d": [3', 'é", "'])
    tokenizer.add_tokens(["]}, ", "5]}, {", '{"desc": "c', "0]}]"])
    return tokenizer


MAKERS = {
    "digits": build_digits_tokenizer,
    "characters": lambda: byte_level_bpe(257, within_words=False),
    "words": lambda: byte_level_bpe(400, within_words=True),
    "phrases": lambda: byte_level_bpe(330, within_words=False),
    "sentencepiece": sentencepiece_like,
    "straddling": straddling,
}


@cache
def tokenizer_named(name):
    return MAKERS[name]()


def slow_ends(tokenizer, ids):
    """Where each token ends in the text: one full decode per token."""
    backend, ends = tokenizer.backend_tokenizer, []
    for k in range(1, len(ids) + 1):
        text = backend.decode(ids[:k], skip_special_tokens=False)
        ends.append(ends[-1] if text.endswith("\N{REPLACEMENT CHARACTER}") and ends else len(text.rstrip("\ufffd")))
    return ends


def slow_text(tokenizer, ids):
    return tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False)
