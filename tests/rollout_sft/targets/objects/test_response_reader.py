"""Ending a response early changes nothing that is trained, and cuts no answer that would have been complete."""

import json
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_sft import Rollout
from rollout_sft.rollouts.endings import make_endings
from rollout_sft.targets.objects.builder import ObjectsTargetBuilder
from rollout_sft.targets.objects.parsing import parse_answer
from tests.rollout_sft.targets.objects.generated_answers import answers
from tests.rollout_sft.targets.objects.trained_answers import sample, thing
from tests.rollout_sft.targets.tokenizers import MAKERS, slow_text, tokenizer_named

CAT = '{"desc": "3", "bbox_2d": [4, 8, 12, 16]}'
UNSCORED = {"rollout/truncation", "rollout/new_tokens_mean", "rollout/valid_pred_rate"}
"""What a cut may change in the scores; malformed objects behind it are not seen."""


def builder_for(name, **options):
    return ObjectsTargetBuilder(tokenizer=tokenizer_named(name), **options)


def endings_for(name, how):
    return make_endings(how, builder_for(name))


def trained(name, truths, ids):
    """All that is trained on a response, with both kinds of supervision."""
    found = []
    for supervision in ("coordinates", "expert"):
        builder = builder_for(name, prefix_supervision=supervision)
        segment = builder.build(sample(*truths), Rollout(response_ids=ids, truncated=True)).segment
        found += [segment.input_ids, segment.targets, segment.weights, *(v for _, v in sorted(segment.indices.items()))]
    return found


def assert_trained_the_same(name, truths, whole, cut):
    for a, b in zip(trained(name, truths, whole), trained(name, truths, cut), strict=True):
        assert torch.equal(a, b)
    builder, truth = builder_for(name), sample(*truths)
    scores = [builder.score(truth, Rollout(response_ids=ids, truncated=True)) for ids in (whole, cut)]
    for metric in scores[0].keys() - UNSCORED:
        assert scores[0][metric] == scores[1][metric], metric


def kind_of(name):
    return "digits" if name == "digits" else "other"


@pytest.mark.parametrize("name", ["digits", "characters", "words", "sentencepiece", "straddling"])
@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("[", None),
        ("[]", None),
        (f"[{CAT}]", None),
        (f"[{CAT}, {CAT}, ", None),
        (f"[{CAT}]]", f"[{CAT}]]"),
        (f"[{CAT}], {CAT}]", f"[{CAT}],"),
        (f"[{CAT}, ]", f"[{CAT}, ]"),
        (f"[{CAT}{CAT}", f"[{CAT}{{"),
        (CAT, "{"),
        (f"[[{CAT}]]", "[["),
        (f'[{CAT}, {{"desc": "3", "bbox_2d": [4, 8]}}, {CAT}', None),
    ],
)
def test_a_response_is_closed_once_no_object_can_follow_and_it_is_not_complete(name, text, kept):
    endings, ids = endings_for(name, "closed"), builder_for(name).speller.encode(text)
    end = endings.ends_at(ids)
    if kept is None:
        assert end is None
    else:
        # The token that shows it may hold more text.
        assert slow_text(tokenizer_named(name), ids[: end - 1]) in [kept[:n] for n in range(len(kept))]
        assert slow_text(tokenizer_named(name), ids[:end]).startswith(kept)


@pytest.mark.parametrize("space", [" ", "\n", "\n  \t\r\n"])
def test_white_space_behind_the_list_is_part_of_a_complete_answer(space):
    speller = builder_for("characters").speller
    endings, ids = endings_for("characters", "closed"), speller.encode(f"[{CAT}]{space}")
    assert endings.ends_at(ids) is None
    assert endings.ends_at([*ids, *speller.encode("x")]) == len(ids) + 1


def test_a_character_that_begins_behind_the_list_ends_it_when_it_is_whole():
    speller = builder_for("characters").speller
    ids = speller.encode(f"[{CAT}]\N{SNOWMAN}")
    assert endings_for("characters", "closed").ends_at(ids) == len(ids)
    assert endings_for("characters", "closed").ends_at(ids[:-1]) is None


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_targets_depend_on_the_tokens_alone_that_the_reader_keeps(name, data):
    truths, text, _, _ = data.draw(answers(kind_of(name)))
    builder = builder_for(name)
    ids, reader = builder.speller.encode(text), builder.response_reader()
    for token in ids:
        reader.read(token)
    assert_trained_the_same(name, truths, ids, ids[: reader.kept])
    assert len(parse_answer(slow_text(tokenizer_named(name), ids[: reader.kept - 1])).objects) < max(
        1, len(parse_answer(text).objects)
    )


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_nothing_that_follows_a_closed_response_would_have_been_trained(name, data):
    truths, text, _, _ = data.draw(answers(kind_of(name)))
    speller = builder_for(name).speller
    behind = data.draw(st.sampled_from(["]", CAT, f", {CAT}]", f"]{CAT}]", "[", f"] [{CAT}]"]))
    anything = data.draw(st.lists(st.integers(3, len(tokenizer_named(name)) - 1), max_size=12))
    ids = [*speller.encode(text + behind), *anything, *speller.encode(f", {CAT}]")]
    end = endings_for(name, "closed").ends_at(ids)
    if end is not None:
        assert_trained_the_same(name, truths, ids, ids[:end])
        assert not parse_answer(slow_text(tokenizer_named(name), ids)).complete


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_loop_that_goes_on_would_not_have_been_trained(name, data):
    truths, text, _, _ = data.draw(answers(kind_of(name)))
    speller = builder_for(name).speller
    loop = data.draw(
        st.one_of(
            st.sampled_from([CAT + ", ", ", " + CAT, '{"desc": "3", "bbox_2d": [4, 8]}, ', '{"desc": ', "44, "]).map(
                speller.encode
            ),
            st.lists(st.integers(3, len(tokenizer_named(name)) - 1), min_size=1, max_size=20),
        )
    )
    ids = speller.encode(text) + loop * (600 // len(loop))
    end = endings_for(name, "looping").ends_at(ids)
    if end is not None:
        assert_trained_the_same(name, truths, ids, ids[:end])
    else:  # it completes an object each time
        assert len(parse_answer(slow_text(tokenizer_named(name), ids)).objects) > 2


DESCS = ["cat", "ha ha ha ha ha ha ha", "0 0 0 0 0 0", "a" * 24, "]" * 6, "{}" * 4, "\\" * 4, "é" * 9]


def good_answer(rng, digits):
    """A complete answer with much that repeats: digits, coordinates, descriptions, objects, white space."""
    objects = []
    for _ in range(rng.randrange(0, 9)):
        if digits:
            x, y = (4 * rng.randrange(5) for _ in "xy")
            objects.append(thing(rng.choice("0123"), x, y, x + 4 * rng.randrange(1, 5), y + 4 * rng.randrange(1, 5)))
            continue
        low = rng.choice([0, 0.0, 11111, 1000000, 1 / 3, -0.1111111111111111, 2.0**-30])
        high = low + rng.choice([1, 100000, 1 / 3, 2222222, 1e16])
        box = (low, low, high, high) if rng.random() < 0.7 else (low, low + 1, high, high + 1)
        objects.append(thing(rng.choice(DESCS) * rng.randrange(1, 3), *box))
    objects += objects[-1:] * rng.choice([0, 0, 1, 12])
    if digits:
        return json.dumps(objects)
    return json.dumps(objects, indent=rng.choice([None, None, 1, 8]), ensure_ascii=rng.random() < 0.5) + rng.choice(
        ["", "\n", "   "]
    )


def assert_no_good_answer_is_cut(name, number):
    rng, endings, speller = random.Random(name), endings_for(name, "looping"), builder_for(name).speller
    for _ in range(number):
        text = good_answer(rng, digits=name == "digits")
        ids = speller.encode(text)
        assert parse_answer(slow_text(tokenizer_named(name), ids)).complete, text
        assert endings.ends_at(ids) is None, text


@pytest.mark.parametrize("name", MAKERS)
def test_no_answer_that_is_complete_is_cut(name):
    assert_no_good_answer_is_cut(name, 40)


@pytest.mark.families
@pytest.mark.parametrize("name", MAKERS)
def test_none_of_12000_complete_answers_is_cut(name):
    assert_no_good_answer_is_cut(name, 2000)
