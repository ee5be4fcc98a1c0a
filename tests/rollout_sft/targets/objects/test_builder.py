"""Y_train and its supervision: examples that can be read, then a slow oracle for masks over generated answers."""

import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from rollout_sft.rollouts.base import Rollout
from rollout_sft.targets.objects.builder import ObjectsTargetBuilder
from tests.rollout_sft.targets.tokenizers import MAKERS, slow_ends, slow_text, tokenizer_named

PROMPT = [5, 6, 7]


def thing(desc, *box):
    return {"desc": desc, "bbox_2d": list(box)}


def sample(*objects):
    return {"id": "s", "prompt_ids": PROMPT, "objects": list(objects)}


SCORED_BY_BUILDING_ALONE = {"rollout/appended", "rollout/unaligned_slots"}


def build(name, text_or_ids, *truths, truncated=False, **options):
    tokenizer = tokenizer_named(name)
    builder = ObjectsTargetBuilder(tokenizer=tokenizer, **options)
    ids = builder.speller.encode(text_or_ids) if isinstance(text_or_ids, str) else text_or_ids
    target = builder.build(sample(*truths), Rollout(response_ids=ids, truncated=truncated))
    return Answer(tokenizer, target)


class Answer:
    """A built target, read from the side of the answer: token `i` of Y_train and what was asked of it."""

    def __init__(self, tokenizer, target):
        self.tokenizer, self.segment, self.counters = tokenizer, target.segment, target.counters
        ids = self.segment.input_ids.tolist()
        assert ids[: len(PROMPT)] == PROMPT
        assert ids[-1] == tokenizer.eos_token_id
        self.ids = ids[len(PROMPT) : -1]
        self.text = slow_text(tokenizer, self.ids)
        at = slice(len(PROMPT) - 1, -2)
        self.weights = self.segment.weights[at].tolist()
        self.targets = self.segment.targets[at].tolist()
        assert self.segment.weights[: len(PROMPT) - 1].tolist() == [0] * (len(PROMPT) - 1)
        assert self.segment.weights[-2:].tolist() == [1, 0]
        assert self.segment.targets[-2] == tokenizer.eos_token_id

    def text_at(self, i):
        return slow_text(self.tokenizer, self.ids[i : i + 1])

    def field(self, name):
        return [p - len(PROMPT) + 1 for p in self.segment.indices[name].tolist()]

    def supervised_text(self):
        """The answer with what is supervised in angle brackets: «right», or «generated→target»."""
        pieces = []
        for i, (token, target, weight) in enumerate(zip(self.ids, self.targets, self.weights, strict=True)):
            piece = slow_text(self.tokenizer, self.ids[: i + 1])[len(slow_text(self.tokenizer, self.ids[:i])) :]
            wanted = slow_text(self.tokenizer, [*self.ids[:i], target])[len(slow_text(self.tokenizer, self.ids[:i])) :]
            pieces.append(piece if not weight else f"«{piece}»" if target == token else f"«{piece}→{wanted}»")
        return "".join(pieces).replace("»«", "·")


# --- one coordinate per token ----------------------------------------------------------------------------------------

THREE, EIGHT = thing("3", 4, 8, 12, 16), thing("8", 20, 24, 28, 32)


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


# --- several tokens per number, tokens across parts -------------------------------------------------------------------


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
    assert answer.supervised_text() == '[{"desc": "a", "bbox_2d": [«1», «2», «3·.→,»0, «4»]}«]»'


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


# --- generated answers ------------------------------------------------------------------------------------------------

coordinates = {"digits": st.integers(0, 5).map(lambda k: 4 * k), "other": st.integers(0, 120)}
descriptions = {"digits": st.sampled_from("0123456789"), "other": st.sampled_from(["3", "cat", "]}", 'a "b"', "é"])}


@st.composite
def things(draw, kind):
    x, y = draw(coordinates[kind]), draw(coordinates[kind])
    side = st.integers(1, 4).map(lambda k: 4 * k) if kind == "digits" else st.integers(1, 130)
    return thing(draw(descriptions[kind]), x, y, x + draw(side), y + draw(side))


@st.composite
def answers(draw, kind):
    """Truths, and an answer with right, wrong and malformed objects; its valid objects and their places."""
    truths = draw(st.lists(things(kind), max_size=3))
    text, valid, malformed = "[", [], 0
    for k in range(draw(st.integers(0, 3))):
        text += ", " if k else ""
        choice = draw(st.integers(0, 5))
        if choice == 0:
            text += '{"desc": "3", "bbox_2d": [4, 8, 12]}'
            malformed += 1
            continue
        item = draw(things(kind)) if choice == 1 or not truths else draw(st.sampled_from(truths))
        if choice == 2:
            x1, y1, x2, y2 = item["bbox_2d"]
            item = {**item, "bbox_2d": [x1, y1, x2 + 4, y2]}
        valid.append((item, len(text)))
        text += json.dumps(item)
    end = draw(st.sampled_from(["]", "", ", ", ', {"desc": ', "]]"]))
    return truths, text + end, valid, malformed


def best_pairs(valid, truths, gate):
    """Brute force over all one-to-one assignments: those with the largest sum of gated IoU."""

    def iou(a, b):
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        both = max(width, 0) * max(height, 0)
        area = lambda c: (c[2] - c[0]) * (c[3] - c[1])  # noqa: E731
        return both / (area(a) + area(b) - both)

    found = []
    slots = [*range(len(truths)), *[None] * len(valid)]
    for order in set(itertools.permutations(slots, len(valid))):
        pairs = {i: j for i, j in enumerate(order) if j is not None}
        gains = [iou(valid[i][0]["bbox_2d"], truths[j]["bbox_2d"]) for i, j in pairs.items()]
        if all(gain >= gate for gain in gains):
            found.append((sum(gains), pairs))
    best = max(total for total, _ in found)
    return [pairs for total, pairs in found if total > best - 1e-9]


def expected_decisions(text, valid, truths, pairs, tokens_of):
    """
    For tokenizers whose numbers share no token with anything: character where a token starts -> its target's text.

    `tokens_of` splits a number (or a character behind it) into the texts of its tokens.
    """
    decisions = {}
    for i, j in pairs.items():
        item, start = valid[i]
        at = text.index('"bbox_2d": [', start) + len('"bbox_2d": [')
        for generated, true in zip(item["bbox_2d"], truths[j]["bbox_2d"], strict=True):
            here = at
            ends = "," if at + len(str(generated)) < text.index("]", at) else "]"
            mine, wanted = [*tokens_of(str(generated)), ends], [*tokens_of(str(true)), ends]
            for a, b in itertools.zip_longest(mine, wanted):
                if a == b == ends:
                    break
                decisions[here] = b
                if a != b:
                    break
                here += len(a)
            at += len(str(generated)) + 2
    return decisions


@pytest.mark.parametrize(("name", "tokens_of"), [("digits", lambda n: [n]), ("characters", list)])
@given(data=st.data(), supervise_desc=st.booleans())
@settings(max_examples=80, deadline=None)
def test_masks_are_those_of_a_slow_oracle(name, tokens_of, data, supervise_desc):
    kind = "digits" if name == "digits" else "other"
    truths, text, valid, _ = data.draw(answers(kind))
    answer = build(name, text, *truths, supervise_desc=supervise_desc)
    cut = valid[-1][1] + len(json.dumps(valid[-1][0])) if valid else 1
    candidates = []
    for pairs in best_pairs(valid, truths, 0.5):
        missing = [truth for j, truth in enumerate(truths) if j not in pairs.values()]
        tail = (", " if valid and missing else "") + ", ".join(map(json.dumps, missing)) + "]"
        decisions = expected_decisions(text, valid, truths, pairs, tokens_of)
        masked = set()
        if not supervise_desc:
            at = cut + (2 if valid and missing else 0)
            for truth in missing:
                desc = json.dumps(truth["desc"])
                masked.update(range(at + 9 + 1, at + 9 + len(desc) - 1))
                at += len(json.dumps(truth)) + 2
        candidates.append((text[:cut] + tail, decisions, masked))
    starts = [0, *slow_ends(answer.tokenizer, answer.ids)]
    seen = {
        starts[i]: slow_text(answer.tokenizer, [target])
        for i, (target, weight) in enumerate(zip(answer.targets, answer.weights, strict=True))
        if weight and starts[i] < cut
    }
    hidden = {
        c
        for i, weight in enumerate(answer.weights)
        for c in range(starts[i], starts[i + 1])
        if not weight and starts[i] >= cut and (name == "characters" or c not in (starts[i], starts[i + 1] - 1))
    }
    # With ties among the matchings any of them will do, but text, targets and masks must be of the same one.
    seen_text = {at: wanted[0] if wanted and wanted[0] in ",]" else wanted for at, wanted in seen.items()}
    assert (answer.text, seen_text, hidden) in candidates


@pytest.mark.parametrize("name", MAKERS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_y_train_begins_as_generated_and_ends_as_the_truth_asks(name, data):
    kind = "digits" if name == "digits" else "other"
    truths, text, valid, malformed = data.draw(answers(kind))
    tokenizer = tokenizer_named(name)
    builder = ObjectsTargetBuilder(tokenizer=tokenizer)
    ids = builder.speller.encode(text)
    if name != "digits":  # tokens as no tokenizer would choose them, and an end in the middle of a token
        pieces = data.draw(st.lists(st.integers(0, len(text)), max_size=6).map(lambda cuts: [0, *sorted(cuts), None]))
        ids = [t for a, b in itertools.pairwise(pieces) for t in builder.speller.encode(text[a:b])]
    ids = ids[: data.draw(st.integers(0, len(ids)))] if data.draw(st.booleans()) else ids
    answer = Answer(tokenizer, builder.build(sample(*truths), Rollout(response_ids=ids, truncated=False)))
    generated = slow_text(tokenizer, ids)
    ends = [start + len(json.dumps(item)) for item, start in valid]
    whole = [item for (item, _), end in zip(valid, ends, strict=True) if end <= len(generated)]
    cut = ends[len(whole) - 1] if whole else min(1, len(generated))
    held = [0, *slow_ends(tokenizer, ids)]
    prefix_length = max((k for k in range(1, len(held)) if held[k - 1] < held[k] <= cut), default=0)
    assert answer.ids[:prefix_length] == ids[:prefix_length]
    loaded = json.loads(answer.text)
    boxes = [o for o in loaded if len(o["bbox_2d"]) == 4]
    if not malformed:
        assert boxes == loaded
    assert boxes[: len(whole)] == whole
    appended = boxes[len(whole) :]
    assert all(o in truths for o in appended)
    matched = answer.counters["rollout/matched"][0]
    assert len(appended) == len(truths) - matched
    assert answer.counters["rollout/appended"] == (len(appended), 1)
    assert all(weight == 0 for weight in answer.weights[:prefix_length]) or whole
    # Every target inside the prefix goes on to spell what a matched truth says there.
    assert all(answer.weights[i] in (0, 1) for i in range(len(answer.ids)))
    for i in range(prefix_length):
        if answer.weights[i] and whole:
            said = slow_text(tokenizer, [*answer.ids[:i], answer.targets[i]])
            assert any(spells(said, w) for w in truthful(answer.text, whole, truths)), said
    assert torch.equal(answer.segment.indices["supervised"], answer.segment.weights.nonzero().flatten())


def spells(said, whole):
    return whole.startswith(said) or said.startswith(whole)


def truthful(text, valid, truths):
    """The answer up to a slot of any object, as generated, and from there on the coordinates of any truth."""
    at = 0
    for item in valid:
        at = text.index(json.dumps(item), at)
        for truth in truths:
            for k in range(4):
                numbers = item["bbox_2d"][:k] + truth["bbox_2d"][k:]
                yield text[:at] + json.dumps({**item, "bbox_2d": numbers})
        at += 1
