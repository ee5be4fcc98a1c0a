"""Boundary supervision: at each boundary of the model's own prefix, go on or end, as the dynamic oracle says."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_sft.rollouts.base import Rollout
from rollout_sft.targets.objects.builder import ObjectsTargetBuilder
from tests.rollout_sft.targets.objects.test_builder import Answer, answers, best_pairs, build, sample, thing
from tests.rollout_sft.targets.tokenizers import MAKERS, slow_ends, slow_text, tokenizer_named

THREE, EIGHT, ONE = thing("3", 4, 8, 12, 16), thing("8", 20, 24, 28, 32), thing("1", 0, 32, 8, 40)


def with_boundaries(name, text, *truths):
    """What is supervised with boundary supervision and not without it: (text before, wanted) in order."""
    plain, full = (build(name, text, *truths, boundary_supervision=on) for on in (False, True))
    assert plain.ids == full.ids
    found = []
    for i, weight in enumerate(full.weights):
        if weight != plain.weights[i] or full.targets[i] != plain.targets[i]:
            assert (plain.weights[i], weight) == (0, 1)
            found.append((slow_text(full.tokenizer, full.ids[:i]), slow_text(full.tokenizer, [full.targets[i]]), i))
    assert full.field("boundary") == [i for _, _, i in found]
    return [(before, wanted) for before, wanted, _ in found]


def test_while_a_truth_is_open_the_list_should_go_on_and_then_end():
    own = [THREE, EIGHT, ONE]
    decisions = with_boundaries("digits", json.dumps(own), THREE, EIGHT)
    assert decisions == [
        ("[", '{"desc": '),
        (json.dumps(own[:1])[:-1], ", "),
        (json.dumps(own[:2])[:-1], "]"),
    ]


def test_a_truth_that_only_a_later_object_matches_is_still_open():
    own = [ONE, THREE, EIGHT]
    wanted = [wanted for _, wanted in with_boundaries("digits", json.dumps(own), THREE)]
    assert wanted == ['{"desc": ', ", ", "]"]


def test_with_nothing_to_find_the_list_should_have_stayed_empty():
    assert with_boundaries("digits", json.dumps([THREE, EIGHT])) == [("[", "]"), (json.dumps([THREE])[:-1], "]")]


def test_a_truth_that_nothing_matches_keeps_the_list_open_to_the_tail():
    wanted = [wanted for _, wanted in with_boundaries("digits", json.dumps([ONE, THREE, ONE]), EIGHT)]
    assert wanted == ['{"desc": ', ", ", ", "]


def test_the_boundary_behind_the_last_object_belongs_to_the_tail():
    assert [w for _, w in with_boundaries("digits", json.dumps([THREE]), THREE, EIGHT)] == ['{"desc": ']
    assert with_boundaries("digits", "[", THREE) == []
    assert with_boundaries("digits", "no list", THREE) == []


def test_the_reference_has_the_field_as_well():
    builder = ObjectsTargetBuilder(tokenizer=tokenizer_named("digits"), boundary_supervision=True)
    assert builder.build_reference(sample(THREE)).segment.indices["boundary"].tolist() == []


def test_a_token_across_the_boundary_is_the_decision_when_it_holds_structure_alone():
    own = [thing("cat", 10, 20, 30, 40), thing("cat", 50, 60, 70, 80)]
    (_, first), (before, wanted) = with_boundaries("words", json.dumps(own), own[1])
    assert first == '[{"'
    assert before == json.dumps(own[:1])[: -len("]}]")]
    assert wanted == "]},"
    # This tokenizer writes [] as two tokens: the one that was generated for [{" has no counterpart that decides.
    assert with_boundaries("words", json.dumps(own)) == [(before, "]}]")]


def test_a_token_that_holds_numbers_besides_the_boundary_decides_nothing():
    tokenizer = MAKERS["characters"]()
    tokenizer.add_tokens(["0]}, ", "0]}]"])
    builder = ObjectsTargetBuilder(tokenizer=tokenizer, boundary_supervision=True)
    ids = builder.speller.encode(json.dumps([thing("a", 1, 2, 3, 40), thing("a", 5, 6, 7, 8)]))
    answer = Answer(tokenizer, builder.build(sample(), Rollout(response_ids=ids, truncated=False)))
    assert answer.supervised_text() == (
        '[«{→]»"desc": "a", "bbox_2d": [1, 2, 3, 40]}, {"desc": "a", "bbox_2d": [5, 6, 7, 8]}«]»'
    )


def test_a_coordinate_comes_before_the_boundary_where_both_ask_for_one_token():
    tokenizer = MAKERS["characters"]()
    tokenizer.add_tokens(["]}, "])
    builder = ObjectsTargetBuilder(tokenizer=tokenizer, boundary_supervision=True)
    ids = builder.speller.encode(json.dumps([thing("a", 0, 0, 30, 3), thing("a", 5, 6, 7, 8)]))
    rollout = Rollout(response_ids=ids, truncated=False)
    ends_there = Answer(tokenizer, builder.build(sample(thing("a", 0, 0, 30, 3)), rollout))
    goes_on = Answer(tokenizer, builder.build(sample(thing("a", 0, 0, 30, 3.5)), rollout))
    # `]}` and then `]` is how this tokenizer ends a list, so the token has no counterpart that decides.
    assert "«3»]}, {" in ends_there.supervised_text()
    assert "«3·]}, →.»{" in goes_on.supervised_text()
    open_still = Answer(
        tokenizer, builder.build(sample(thing("a", 0, 0, 30, 3.5), thing("b", 90, 90, 99, 99)), rollout)
    )
    assert "«3·]}, →.»{" in open_still.supervised_text()
    assert open_still.field("boundary") == [1]


@pytest.mark.parametrize("name", ["digits", "characters"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_decisions_are_those_of_a_slow_oracle(name, data):
    truths, text, valid, malformed = data.draw(answers("digits" if name == "digits" else "other"))
    if malformed:
        return
    plain, full = (build(name, text, *truths, boundary_supervision=on) for on in (False, True))
    starts = [0, *slow_ends(full.tokenizer, full.ids)]
    got = {starts[i]: slow_text(full.tokenizer, [full.targets[i]])[0] for i in full.field("boundary")}
    expected = []
    for pairs in best_pairs(valid, truths, 0.5):
        decisions = {}
        for m in range(len(valid)):
            done = {pairs[i] for i in range(m) if i in pairs}
            at = valid[m - 1][1] + len(json.dumps(valid[m - 1][0])) if m else 1
            decisions[at] = "]" if len(done) == len(truths) else "," if m else "{"
        expected.append(decisions)
    assert got in expected
    boundary = set(full.field("boundary"))
    for i in range(len(full.ids)):
        if i not in boundary:
            assert (plain.weights[i], plain.targets[i]) == (full.weights[i], full.targets[i])
