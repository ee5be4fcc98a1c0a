"""Y_train and its supervision, in examples that can be read: one coordinate per token."""

import json

import pytest

from rollout_sft.rollouts.base import Rollout
from rollout_sft.targets.objects.builder import ObjectsTargetBuilder
from tests.rollout_sft.targets.objects.trained_answers import (
    EIGHT,
    SCORED_BY_BUILDING_ALONE,
    THREE,
    Answer,
    build,
    sample,
    thing,
)
from tests.rollout_sft.targets.tokenizers import MAKERS, tokenizer_named


def test_a_matched_object_keeps_its_tokens_and_learns_the_true_coordinates():
    answer = build("digits", json.dumps([thing("3", 4, 8, 12, 20)]), THREE)
    assert answer.supervised_text() == '[{"desc": "3", "bbox_2d": [«4», «8», «12», «20→16»]}«]»'


def test_an_unmatched_truth_is_appended_and_trained_completely():
    answer = build("digits", json.dumps([THREE]), THREE, EIGHT)
    assert answer.supervised_text() == (
        '[{"desc": "3", "bbox_2d": [«4», «8», «12», «16»]}«, ·{"desc": ·"8"·, "bbox_2d": [·20·, ·24·, ·28·, ·32·]}·]»'
    )


def test_a_false_positive_is_context_and_nothing_else():
    answer = build("digits", json.dumps([thing("1", 0, 0, 8, 8)]))
    assert answer.supervised_text() == '[{"desc": "1", "bbox_2d": [0, 0, 8, 8]}«]»'


def test_a_wrong_description_is_matched_by_its_box_but_counted_as_wrong():
    answer = build("digits", json.dumps([thing("1", 4, 8, 12, 16)]), THREE)
    assert answer.supervised_text() == '[{"desc": "1", "bbox_2d": [«4», «8», «12», «16»]}«]»'
    assert answer.counters["rollout/matched"] == (1, 1)
    assert answer.counters["rollout/f1"] == (0, 2)
    assert answer.counters["rollout/false_positives"] == (1, 1)


def test_below_the_gate_nothing_is_matched():
    moved = json.dumps([thing("3", 4, 12, 12, 20)])  # IoU 1/3
    assert build("digits", moved, THREE).counters["rollout/matched"] == (0, 1)
    lenient = build("digits", moved, THREE, iou_threshold=0.3)
    assert lenient.counters["rollout/matched"] == (1, 1)
    assert lenient.supervised_text() == '[{"desc": "3", "bbox_2d": [«4», «12→8», «12», «20→16»]}«]»'


def test_descriptions_of_the_tail_may_go_unsupervised():
    answer = build("digits", "[]", THREE, supervise_desc=False)
    assert answer.supervised_text() == '[«{"desc": »"3"«, "bbox_2d": [·4·, ·8·, ·12·, ·16·]}·]»'


def test_coordinates_are_a_named_field_in_prefix_and_tail():
    answer = build("digits", json.dumps([THREE]), THREE, EIGHT)
    assert [answer.text_at(i) for i in answer.field("coord")] == ["4", "8", "12", "16", "20", "24", "28", "32"]
    assert "boundary" not in answer.segment.indices


@pytest.mark.parametrize("text", ["", "no list", " ", '{"desc": "3", "bbox_2d": [4, 8, 12, 16]}', "x[]"])
def test_an_answer_without_a_list_is_replaced_by_the_whole_reference(text):
    answer = build("words", text, THREE)
    assert answer.text == json.dumps([THREE])
    assert set(answer.weights) == {1}


def test_a_truncated_answer_is_continued_behind_its_last_complete_object():
    text = json.dumps([THREE, EIGHT])
    answer = build("digits", text[: text.rindex(", 32]")], THREE, EIGHT, truncated=True)
    assert not any(answer.weights[:4])
    assert all(answer.weights[12:])
    assert answer.text == json.dumps([THREE, EIGHT])
    counters = answer.counters
    assert counters["rollout/truncation"] == (1, 1)
    assert counters["rollout/valid_pred_rate"] == (1, 1)
    assert counters["rollout/parse_rate"] == (0, 1)
    assert counters["rollout/recall"] == (1, 2)
    assert counters["rollout/appended"] == (1, 1)


def test_an_unclosed_object_counts_as_malformed_when_the_model_ended_there():
    text = '[{"desc": "3", "bbox_2d": [4, 8'
    assert build("digits", text, THREE, truncated=True).counters["rollout/valid_pred_rate"] == (0, 0)
    assert build("digits", text, THREE).counters["rollout/valid_pred_rate"] == (0, 1)


def test_a_malformed_object_stays_in_the_prefix_only_before_a_valid_one():
    bad = '{"desc": "3", "bbox_2d": [4, 8, 12]}'
    good = json.dumps(THREE)
    before = build("digits", f"[{bad}, {good}]", THREE, EIGHT)
    assert before.text == f"[{bad}, {good}, {json.dumps(EIGHT)}]"
    assert before.counters["rollout/valid_pred_rate"] == (1, 2)
    assert not any(before.weights[: before.ids.index(before.ids[1], 2)])
    behind = build("digits", f"[{good}, {bad}]", THREE, EIGHT)
    assert behind.text == f"[{good}, {json.dumps(EIGHT)}]"
    assert build("digits", f"[{bad}]", THREE).text == f"[{good}]"


def test_counters_are_pairs_that_say_what_was_seen():
    answer = build("digits", json.dumps([THREE, thing("1", 20, 24, 28, 32), thing("2", 0, 0, 8, 8)]), THREE, EIGHT)
    assert answer.counters == {
        "rollout/f1": (2, 5),
        "rollout/precision": (1, 3),
        "rollout/recall": (1, 2),
        "rollout/valid_pred_rate": (3, 3),
        "rollout/parse_rate": (1, 1),
        "rollout/truncation": (0, 1),
        "rollout/new_tokens_mean": (37, 1),
        "rollout/matched": (2, 1),
        "rollout/false_positives": (2, 1),
        "rollout/appended": (0, 1),
        "rollout/unaligned_slots": (0, 8),
    }


def test_scoring_counts_what_building_counts():
    builder = ObjectsTargetBuilder(tokenizer=tokenizer_named("digits"))
    rollout = Rollout(response_ids=builder.speller.encode(json.dumps([THREE])), truncated=False)
    built, scored = (f(sample(THREE, EIGHT), rollout) for f in (builder.build, builder.score))
    assert scored == {k: v for k, v in built.counters.items() if k not in SCORED_BY_BUILDING_ALONE}
    assert builder.read_answer(rollout) == [THREE]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("objects", [[], [THREE], [THREE, EIGHT]])
def test_the_reference_is_the_whole_list_and_all_of_it_is_trained(name, objects):
    tokenizer = tokenizer_named(name)
    target = ObjectsTargetBuilder(tokenizer=tokenizer).build_reference(sample(*objects))
    answer = Answer(tokenizer, target)
    assert answer.text == json.dumps(objects)
    assert set(answer.weights) == {1}
    assert answer.targets == answer.ids
    assert target.counters == {}
    if name == "digits":
        assert len(answer.ids) + 1 == 12 * len(objects) + 2 or not objects
        assert len(answer.field("coord")) == 4 * len(objects)


def test_the_reference_may_leave_descriptions_out():
    target = ObjectsTargetBuilder(tokenizer=tokenizer_named("characters"), supervise_desc=False).build_reference(
        sample(thing("cat", 1, 2, 3, 4))
    )
    answer = Answer(tokenizer_named("characters"), target)
    assert "".join(c for c, w in zip(answer.text, answer.weights, strict=True) if not w) == "cat"
