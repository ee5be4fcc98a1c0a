"""
Real vocabularies, out of packages that ship them: Qwen's, and Mistral's newest and first kind.

`make install` puts the packages (the extra `vocabularies`) into a folder beside the other ones, without what they need:
only their files are read, and transformers, which would use `mistral_common`, does not see it. Tests with a vocabulary
that is missing are skipped with the reason.
"""

import base64
import json
import sys
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode, generate_merges

FOLDER = Path(sys.prefix) / "vocabularies"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def shipped(package, file):
    """Returns the path of a package's file; skips the test where there is none."""
    spec = PathFinder.find_spec(package, [*sys.path, str(FOLDER)])
    path = Path(spec.submodule_search_locations[0]) / file if spec else None
    if path is None or not path.is_file():
        pytest.skip(f"{package} is not installed, which ships this vocabulary: make install")
    return path


def byte_level(ranks, pattern, special, **names):
    """A byte-level BPE whose merges are found again from the ranks, as its training made them."""
    letters = bytes_to_unicode()

    def spelled(token):
        return "".join(letters[byte] for byte in token)

    merges = []
    for token in sorted(ranks, key=ranks.get):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], len(ranks)))
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append(tuple(map(spelled, parts)))
    model = models.BPE({spelled(token): rank for token, rank in ranks.items()}, merges)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)


@cache
def qwen():
    """151,643 tokens; digits alone, punctuation and its line breaks together."""
    lines = shipped("dashscope", "resources/qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made = byte_level(ranks, QWEN_PATTERN, special, eos_token="<|endoftext|>", chat_template=CHATML)
    made.backend_tokenizer.normalizer = normalizers.NFC()
    return made


@cache
def tekken():
    """Mistral's 130,072 tokens since Nemo, without the ids of its control tokens."""
    file = json.loads(shipped("mistral_common", "data/tekken_240718.json").read_text(encoding="utf-8"))
    size = file["config"]["default_vocab_size"] - file["config"]["default_num_special_tokens"]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in file["vocab"][:size]}
    special = ["<s>", "</s>", "[INST]", "[/INST]"]
    names = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": INST}
    return byte_level(ranks, file["config"]["pattern"], special, **names)


@cache
def mistral():
    """Mistral's first vocabulary: 32,768 pieces of SentencePiece, with bytes for what has none."""
    pb2 = pytest.importorskip("transformers.utils.sentencepiece_model_pb2_new", reason="it takes protobuf to read")
    proto = pb2.ModelProto()
    proto.ParseFromString(shipped("mistral_common", "data/mistral_instruct_tokenizer_240323.model.v3").read_bytes())
    scores = {piece.piece: piece.score for piece in proto.pieces}
    vocab = {piece: i for i, piece in enumerate(scores)}
    merges = generate_merges(vocab, scores)
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<s>", "</s>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=INST
    )


REAL = {"qwen": qwen, "tekken": tekken, "mistral": mistral}
