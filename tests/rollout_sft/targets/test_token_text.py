"""Characters of tokens and tokens of characters, for tokenizers of several kinds."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.decoders import DecodeStream

from rollout_sft.targets import token_text
from rollout_sft.targets.objects.builder import ObjectsTargetBuilder
from rollout_sft.targets.token_text import Speller
from tests.rollout_sft.targets.tokenizers import MAKERS, sentencepiece_like, slow_ends, slow_text, tokenizer_named, wrap

ANSWER = '[{"desc": "3", "bbox_2d": [4, 8, 12, 16]}, {"desc": "8", "bbox_2d": [0, 16, 8, 24]}]'


@pytest.fixture(params=MAKERS)
def tokenizer(request):
    return tokenizer_named(request.param)


def test_text_and_ends_are_those_of_decoding_token_by_token(tokenizer):
    speller = Speller(tokenizer)
    ids = speller.encode(ANSWER)
    text, ends = speller.spell(ids)
    assert text == slow_text(tokenizer, ids) == ANSWER
    assert ends == slow_ends(tokenizer, ids)


def test_encoding_continues_text_without_a_space_between(tokenizer):
    speller, cuts = Speller(tokenizer), 0
    for cut in range(1, len(ANSWER)):
        head, tail = speller.encode(ANSWER[:cut]), speller.encode(ANSWER[cut:])
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in head + tail:
            continue  # the digits' tokenizer cannot write half of a piece
        cuts += 1
        assert speller.spell(head + tail)[0] == ANSWER
        read = speller.read(head + tail)
        assert (read.ids, read.text, read.ends) == (head + tail, *speller.spell(head + tail))
        assert read.token_at(cut) == (len(head), cut)
    assert cuts >= 20


@given(st.text(max_size=20), st.integers(0, 8))
def test_a_character_in_several_tokens_belongs_to_the_last_of_them(text, missing):
    tokenizer = tokenizer_named("characters")
    speller = Speller(tokenizer)
    ids = speller.encode("[" + text)
    ids = ids[: max(1, len(ids) - missing)]
    spelled, ends = speller.spell(ids)
    assert ("[" + text).startswith(spelled)
    expected = []
    for k in range(1, len(ids) + 1):
        encoded = ("[" + text).encode()[:k]
        expected.append(len(encoded.decode(errors="ignore")))
    # A character that decoding alone cannot tell from a broken one is attributed no later than the next one.
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert ends == expected


def test_generated_special_tokens_are_text_and_similar_text_is_not_special(tokenizer):
    speller = Speller(tokenizer)
    text, ends = speller.spell([*speller.encode("["), speller.eos_id])
    assert text == "[" + tokenizer.eos_token
    assert ends[-1] == len(text)
    ids = speller.encode(json.dumps("a<eos>b"))
    assert speller.eos_id not in ids or tokenizer.unk_token_id in ids  # the digits have no other way to write it


def test_ids_beyond_the_vocabulary_hold_no_characters(tokenizer):
    speller = Speller(tokenizer)
    bracket = speller.encode("[")
    assert speller.spell([*bracket, len(tokenizer) + 7, *bracket]) == ("[[", [1, 1, 2])


def test_padding_and_truncation_stay_with_the_user_s_tokenizer():
    tokenizer = MAKERS["words"]()
    tokenizer.add_special_tokens({"pad_token": "<eos>"})

    def switch_on():
        tokenizer(["a", "abc"], padding="max_length", max_length=3, truncation=True)
        assert tokenizer.backend_tokenizer.padding is not None

    switch_on()
    speller = Speller(tokenizer)
    assert tokenizer.backend_tokenizer.padding is not None
    assert speller.spell(speller.encode(ANSWER))[0] == ANSWER
    switch_on()
    assert speller.spell(speller.encode(ANSWER))[0] == ANSWER


def test_a_tokenizer_without_an_end_token_is_refused():
    tokenizer = wrap(MAKERS["words"]().backend_tokenizer, eos_token=None)
    with pytest.raises(ValueError, match=r"no end token \(eos_token_id is None\).*set `eos_token`"):
        ObjectsTargetBuilder(tokenizer=tokenizer)


def test_a_tokenizer_without_a_fast_backend_is_refused():
    class Slow:
        eos_token_id = 3

    with pytest.raises(ValueError, match=r"Slow has no `backend_tokenizer`.*load a fast tokenizer"):
        ObjectsTargetBuilder(tokenizer=Slow())


def test_a_tokenizer_that_adds_spaces_and_merges_line_breaks_is_refused():
    with pytest.raises(ValueError, match="merges a line break with"):
        Speller(sentencepiece_like(more_merges=[("\n", "]")]))


@pytest.mark.parametrize("text", ["unknown", "merged"])
def test_a_tokenizer_that_cannot_write_json_is_refused(text):
    if text == "unknown":
        backend = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "a": 2}, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
    else:
        backend = MAKERS["words"]().backend_tokenizer
        backend.normalizer = normalizers.Replace("]", ")")
    with pytest.raises(ValueError, match=r"cannot write JSON: .* decode undoes its encode"):
        Speller(wrap(backend))


def test_byte_tokens_that_are_no_text_end_in_a_mark_and_not_in_an_error():
    """A decoder of byte tokens reads the first byte anew when the second makes no character with it."""
    tokenizer = tokenizer_named("sentencepiece")
    speller = Speller(tokenizer)
    vocab = tokenizer.get_vocab()
    ids = [vocab["<0x41>"], vocab["<0x80>"], *speller.encode("[7]")]
    text, ends = speller.spell(ids)
    assert text == "A\N{REPLACEMENT CHARACTER}[7]"
    assert [speller.spell(ids[:n]) for n in range(len(ids))] == [
        (text[:e], ends[:n]) for n, e in enumerate([0, *ends[:-1]])
    ]


def bytes_that_are_no_text(tokenizer):
    """Tokens that are a part of a character, and those of one whole character of three bytes."""
    vocab = tokenizer.get_vocab()
    snowman = Speller(tokenizer).encode("\N{SNOWMAN}")
    if "<0xFF>" in vocab:
        return [vocab[f"<0x{byte:02X}>"] for byte in (0x41, 0x80, 0xC3, 0xFF)], snowman
    return [i for i in vocab.values() if slow_text(tokenizer, [i]) == "\N{REPLACEMENT CHARACTER}"], snowman


@pytest.mark.parametrize("name", ["characters", "straddling", "sentencepiece"])
@given(data=st.data())
def test_long_runs_of_such_bytes_read_as_if_each_token_were_decoded(name, data):
    tokenizer = tokenizer_named(name)
    speller, (broken, snowman) = Speller(tokenizer), bytes_that_are_no_text(tokenizer)
    parts = st.one_of(
        st.lists(st.sampled_from(broken), max_size=30),
        st.sampled_from([snowman, snowman[:2], speller.encode("[7]"), [len(tokenizer) + 7] * 3]),
    )
    ids = [token for part in data.draw(st.lists(parts, max_size=8)) for token in part]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_text, "_MOST_STEPS", len(ids))
        expected = speller.spell(ids)
    assert speller.spell(ids) == expected


def test_ids_beyond_the_vocabulary_do_not_part_the_bytes_of_a_character():
    tokenizer = tokenizer_named("sentencepiece")
    speller, (_, snowman) = Speller(tokenizer), bytes_that_are_no_text(tokenizer)
    ids = [*snowman[:-1], *[len(tokenizer) + 7] * 6, snowman[-1]]
    assert speller.spell(ids) == ("\N{SNOWMAN}", [0] * (len(ids) - 1) + [1])


@pytest.mark.parametrize("name", ["characters", "straddling", "sentencepiece"])
@pytest.mark.parametrize("kind", ["parts", "parts and bytes that would be text", "ids beyond the vocabulary"])
def test_a_run_of_such_bytes_costs_the_same_for_every_token(name, kind, monkeypatch):
    tokenizer = tokenizer_named(name)
    speller, (broken, _) = Speller(tokenizer), bytes_that_are_no_text(tokenizer)
    decoded = 0

    class Counted:
        """Counts the tokens that each step reads again."""

        def __init__(self, **options):
            self.stream, self.pending = DecodeStream(**options), 0

        def step(self, backend, ids):
            nonlocal decoded
            self.pending += len(ids)
            decoded += self.pending
            chunk = self.stream.step(backend, ids)
            self.pending = 0 if chunk else self.pending
            return chunk

    monkeypatch.setattr(token_text, "DecodeStream", Counted)
    run = {
        "parts": broken[-1:] * 2000,
        "parts and bytes that would be text": [broken[-1], *broken[:1] * 2000],
        "ids beyond the vocabulary": [broken[-1], *[len(tokenizer) + 7] * 2000],
    }[kind]
    text, _ = speller.spell([*run, *speller.encode("[")])
    assert text.endswith("[")
    assert decoded < 2 * len(run)
