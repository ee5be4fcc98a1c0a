"""Y_train where a number has several tokens, and a token parts of two objects."""

import json

import pytest
from tokenizers import AddedToken, normalizers

from rollout_sft.rollouts.base import Rollout
from rollout_sft.targets.objects.builder import ObjectsTargetBuilder
from tests.rollout_sft.targets.objects.trained_answers import PROMPT, Answer, build, sample, thing
from tests.rollout_sft.targets.tokenizers import MAKERS, slow_text, tokenizer_named


@pytest.mark.parametrize(
    ("generated", "true", "supervised"),
    [
        ("12", "12", "«1·2»"),
        ("12", "15", "«1·2→5»"),
        ("12", "35", "«1→3»2"),
        ("12", "1", "«1·2→,»"),
        ("1", "12", "«1·,→2»"),
        ("125", "1", "«1·2→,»5"),
        ("100", "100", "«1·0·0»"),
    ],
)
def test_a_number_is_supervised_up_to_its_first_wrong_token(generated, true, supervised):
    text = '[{"desc": "a", "bbox_2d": [%s, 2, 300, 400]}]'
    answer = build("characters", text % generated, thing("a", int(true), 2, 300, 400))
    begin, end = ('[{"desc": "a", "bbox_2d": [', ", «2», «3·0·0», «4·0·0»]}«]»")
    whole = answer.supervised_text()
    comma = "" if supervised.endswith(",→2»") else ","
    assert whole == begin + supervised + comma + end[1:]


def test_equal_numbers_may_be_written_differently():
    answer = build("characters", '[{"desc": "a", "bbox_2d": [1, 2, 3.0, 4]}]', thing("a", 1, 2, 3, 4))
    assert answer.supervised_text() == '[{"desc": "a", "bbox_2d": [«1», «2», «3·.·0», «4»]}«]»'


def test_a_space_in_the_number_s_token_does_not_hide_the_number():
    answer = build("words", json.dumps([thing("cat", 10, 20, 30, 40)]), thing("cat", 10, 21, 30, 41))
    assert "« 20→ 21»" in answer.supervised_text()
    assert "« 40→ 41·]}]»" in answer.supervised_text()
    assert answer.counters["rollout/unaligned_slots"] == (0, 4)


def test_the_end_of_a_number_is_asked_for_in_the_tokens_that_follow_it():
    tokenizer = tokenizer_named("words")
    text = json.dumps([thing("cat", 10, 2, 30, 178), thing("dog", 0, 0, 1, 1)])
    pieces = [slow_text(tokenizer, [t]) for t in ObjectsTargetBuilder(tokenizer=tokenizer).speller.encode(text)]
    assert "]}," in pieces, "this test needs a token across the end of an object"
    at = pieces.index("]},")
    first = "".join(pieces[at - 2 : at - 1]).strip()
    assert pieces[at - 1].isdigit(), "this test needs a number in two tokens"
    assert first.isdigit(), "this test needs a number in two tokens"
    answer = build("words", text, thing("cat", 10, 2, 30, int(first)), iou_threshold=0.01)
    assert f"« {first}·{pieces[at - 1]}→]}},»]}}," in answer.supervised_text()


def test_a_slot_that_shares_a_token_with_another_number_is_left_out():
    tokenizer = MAKERS["characters"]()
    tokenizer.add_tokens(["0, 2"])
    builder = ObjectsTargetBuilder(tokenizer=tokenizer)
    ids = builder.speller.encode(json.dumps([thing("cat", 10, 20, 30, 40)]))
    rollout = Rollout(response_ids=ids, truncated=False)
    answer = Answer(tokenizer, builder.build(sample(thing("cat", 10, 21, 30, 40)), rollout))
    assert answer.supervised_text() == '[{"desc": "cat", "bbox_2d": [«1·0, 2»0, «3·0», «4·0»]}«]»'
    assert answer.counters["rollout/unaligned_slots"] == (1, 4)
    other = Answer(tokenizer, builder.build(sample(thing("cat", 10, 15, 30, 40)), rollout))
    assert other.supervised_text().startswith('[{"desc": "cat", "bbox_2d": [«1·0, 2→0»0, ')
    wrong = Answer(tokenizer, builder.build(sample(thing("cat", 9, 21, 30, 40)), rollout))
    assert wrong.supervised_text().startswith('[{"desc": "cat", "bbox_2d": [«1→9»0, 20, ')


def test_a_slot_that_shares_a_token_with_the_description_is_left_out():
    tokenizer = MAKERS["characters"]()
    tokenizer.add_tokens(['t", "bbox_2d": [1'])
    builder = ObjectsTargetBuilder(tokenizer=tokenizer)
    rollout = Rollout(response_ids=builder.speller.encode(json.dumps([thing("cat", 1, 2, 3, 4)])), truncated=False)
    answer = Answer(tokenizer, builder.build(sample(thing("dog", 1, 2, 3, 4)), rollout))
    assert answer.supervised_text() == '[{"desc": "cat", "bbox_2d": [1, «2», «3», «4»]}«]»'
    assert answer.counters["rollout/unaligned_slots"] == (1, 4)


def test_a_slot_that_shares_a_token_with_the_last_object_is_left_out():
    tokenizer = MAKERS["characters"]()
    tokenizer.add_tokens(['4]}, {"bbox_2d": [5'])
    builder = ObjectsTargetBuilder(tokenizer=tokenizer)
    text = json.dumps([thing("a", 1, 2, 3, 4)])[:-1] + ', {"bbox_2d": [5, 6, 7, 8], "desc": "b"}]'
    rollout = Rollout(response_ids=builder.speller.encode(text), truncated=False)
    answer = Answer(tokenizer, builder.build(sample(thing("b", 5, 6, 7, 8)), rollout))
    assert answer.supervised_text().endswith(', 4]}, {"bbox_2d": [5, «6», «7», «8»], "desc": "b"}«]»')
    assert answer.counters["rollout/unaligned_slots"] == (1, 4)


def test_a_position_has_one_target_where_a_number_should_go_on():
    tokenizer = MAKERS["characters"]()
    tokenizer.add_tokens([", 2"])
    builder = ObjectsTargetBuilder(tokenizer=tokenizer)
    ids = builder.speller.encode(json.dumps([thing("cat", 1, 20, 30, 40)]))
    rollout = Rollout(response_ids=ids, truncated=False)
    answer = Answer(tokenizer, builder.build(sample(thing("cat", 12, 21, 30, 40)), rollout))
    assert answer.supervised_text() == '[{"desc": "cat", "bbox_2d": [«1·, 2→2»0, «3·0», «4·0»]}«]»'
    assert answer.counters["rollout/unaligned_slots"] == (1, 4)


@pytest.mark.parametrize("name", ["words", "phrases"])
def test_a_token_across_the_end_of_the_last_object_is_written_anew(name):
    text = json.dumps([thing("cat", 10, 20, 30, 40)])
    tokenizer = tokenizer_named(name)
    ids = ObjectsTargetBuilder(tokenizer=tokenizer).speller.encode(text)
    assert slow_text(tokenizer, ids[-1:]) == "]}]", "this test needs a token across the end"
    answer = build(name, text, thing("cat", 10, 20, 30, 40), thing("dog", 1, 2, 3, 4))
    assert answer.text == json.dumps([thing("cat", 10, 20, 30, 40), thing("dog", 1, 2, 3, 4)])
    assert answer.ids[: len(ids) - 1] == ids[:-1]
    assert all(answer.weights[len(ids) - 1 :])


def test_numbers_in_a_straddled_token_are_the_model_s_own():
    speller = ObjectsTargetBuilder(tokenizer=tokenizer_named("characters")).speller
    tokenizer = MAKERS["characters"]()
    tokenizer.add_tokens(["0]}]"])  # one token holds the last digit and the end of everything
    ids = [*speller.encode('[{"desc": "cat", "bbox_2d": [10, 20, 30, 4'), tokenizer.convert_tokens_to_ids("0]}]")]
    builder = ObjectsTargetBuilder(tokenizer=tokenizer)
    rollout = Rollout(response_ids=ids, truncated=False)
    dog = thing("dog", 1, 2, 3, 4)
    wrong = Answer(tokenizer, builder.build(sample(dog), rollout))
    assert wrong.supervised_text().startswith('[{"desc": "cat", "bbox_2d": [10, 20, 30, 40«]·}·,· ·{')
    right = Answer(tokenizer, builder.build(sample(thing("cat", 10, 20, 30, 41), dog), rollout))
    assert "30, «4·0→1·]·}·,· ·{" in right.supervised_text().replace("«3·0»", "30")


def test_an_object_whose_end_is_tokenized_differently_is_not_kept():
    tokenizer = MAKERS["characters"]()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    decomposed = "e\N{COMBINING ACUTE ACCENT}"
    tokenizer.add_tokens([AddedToken(decomposed + '"},', normalized=False)])
    builder = ObjectsTargetBuilder(tokenizer=tokenizer)
    first = json.dumps([thing("a", 1, 2, 3, 4)])[:-1]
    ids = builder.speller.encode(first + ', {"bbox_2d": [5, 6, 7, 8], "desc": "')
    ids.append(tokenizer.convert_tokens_to_ids(decomposed + '"},'))
    rollout = Rollout(response_ids=ids, truncated=False)
    truth = thing("b", 5, 6, 7, 8)
    answer = Answer(tokenizer, builder.build(sample(truth), rollout))
    assert answer.counters["rollout/matched"] == (1, 1)
    assert answer.text == first + ", " + json.dumps(truth) + "]"


def test_an_incomplete_character_behind_the_last_object_is_not_kept():
    speller = ObjectsTargetBuilder(tokenizer=tokenizer_named("characters")).speller
    ids = speller.encode(json.dumps([thing("a", 1, 2, 3, 4)])[:-1]) + speller.encode("é")[:1]
    answer = build("characters", ids, thing("a", 1, 2, 3, 4))
    assert answer.text == json.dumps([thing("a", 1, 2, 3, 4)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objects": [{"desc": "3", "bbox_2d": [1, 2]}]}, r"sample 'a': objects\[0\].bbox_2d"),
        ({"prompt_ids": []}, "sample 'a': prompt_ids is empty"),
        ({"objects": [thing("nine", 4, 8, 12, 16)]}, "sample 'a': the tokenizer turns .*nine.*<unk>"),
    ],
)
def test_a_sample_that_cannot_be_trained_on_is_refused_by_name(change, message):
    builder = ObjectsTargetBuilder(tokenizer=tokenizer_named("digits"))
    bad = {"id": "a", "prompt_ids": PROMPT, "objects": [], **change}
    with pytest.raises(ValueError, match=message):
        builder.build_reference(bad)
    with pytest.raises(ValueError, match=message):
        builder.build(bad, Rollout(response_ids=[], truncated=False))


def test_a_sample_without_objects_is_refused_by_name():
    builder = ObjectsTargetBuilder(tokenizer=tokenizer_named("digits"))
    with pytest.raises(ValueError, match=r"sample 'a' has no 'objects', only \['id', 'prompt_ids'\]"):
        builder.score({"id": "a", "prompt_ids": PROMPT}, Rollout(response_ids=[], truncated=False))


@pytest.mark.parametrize("threshold", [0, -1, 1.5, float("nan")])
def test_a_threshold_that_is_none_is_refused(threshold):
    with pytest.raises(ValueError, match="iou_threshold is"):
        ObjectsTargetBuilder(tokenizer=tokenizer_named("digits"), iou_threshold=threshold)
