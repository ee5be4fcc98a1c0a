"""`prefix_supervision: expert`: inside the model's own answer, all that a correct expert is known to write next."""

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from rollout_sft.rollouts.base import Rollout
from rollout_sft.targets.objects.builder import ObjectsTargetBuilder
from rollout_sft.targets.objects.matching import iou_matrix
from rollout_sft.targets.objects.parsing import parse_answer
from tests.rollout_sft.targets.objects.generated_answers import answers, best_pairs
from tests.rollout_sft.targets.objects.trained_answers import Answer, build, sample, thing
from tests.rollout_sft.targets.tokenizers import MAKERS, slow_ends, slow_text, tokenizer_named

THREE, EIGHT, ONE = thing("3", 4, 8, 12, 16), thing("8", 20, 24, 28, 32), thing("1", 0, 32, 8, 40)


def expert(name, text, *truths, **options):
    return build(name, text, *truths, prefix_supervision="expert", **options)


def boundaries(name, text, *truths):
    """(text before, wanted) of every boundary in order."""
    answer = expert(name, text, *truths)
    return [
        (slow_text(answer.tokenizer, answer.ids[:i]), slow_text(answer.tokenizer, [answer.targets[i]]))
        for i in answer.field("boundary")
    ]


def answer_of(tokenizer, ids, *truths):
    builder = ObjectsTargetBuilder(tokenizer=tokenizer, prefix_supervision="expert")
    return Answer(tokenizer, builder.build(sample(*truths), Rollout(response_ids=ids, truncated=False)))


def written_with(tokens, text, *truths):
    """The answer in characters, but for these tokens."""
    tokenizer = MAKERS["characters"]()
    tokenizer.add_tokens(tokens)
    speller = ObjectsTargetBuilder(tokenizer=tokenizer).speller
    return answer_of(tokenizer, speller.encode(text), *truths)


# --- boundaries -----------------------------------------------------------------------------------------------------


def test_while_a_truth_is_open_the_list_should_go_on_and_then_end():
    own = [THREE, EIGHT, ONE]
    assert boundaries("digits", json.dumps(own), THREE, EIGHT) == [
        ("[", '{"desc": '),
        (json.dumps(own[:1])[:-1], ", "),
        (json.dumps(own[:2])[:-1], "]"),
    ]


def test_a_truth_that_only_a_later_object_matches_is_still_open():
    own = [ONE, THREE, EIGHT]
    assert [wanted for _, wanted in boundaries("digits", json.dumps(own), THREE)] == ['{"desc": ', ", ", "]"]


def test_with_nothing_to_find_the_list_should_have_stayed_empty():
    answer = expert("digits", json.dumps([THREE, EIGHT]))
    assert answer.supervised_text() == (
        '[«{"desc": →]»"3", "bbox_2d": [4, 8, 12, 16]}«, →]»{"desc": "8", "bbox_2d": [20, 24, 28, 32]}«]»'
    )


def test_a_truth_that_nothing_matches_keeps_the_list_open_to_the_tail():
    wanted = [wanted for _, wanted in boundaries("digits", json.dumps([ONE, THREE, ONE]), EIGHT)]
    assert wanted == ['{"desc": ', ", ", ", "]


def test_the_boundary_behind_the_last_object_belongs_to_the_tail():
    assert [w for _, w in boundaries("digits", json.dumps([THREE]), THREE, EIGHT)] == ['{"desc": ']
    assert boundaries("digits", "[", THREE) == []
    assert boundaries("digits", "no list", THREE) == []


def test_every_segment_has_the_same_fields():
    builder = ObjectsTargetBuilder(tokenizer=tokenizer_named("digits"), prefix_supervision="expert")
    indices = builder.build_reference(sample(THREE)).segment.indices
    assert indices.keys() == {"coord", "boundary", "desc", "supervised"}
    assert (indices["boundary"].tolist(), indices["desc"].tolist(), len(indices["coord"])) == ([], [], 4)


def test_a_token_across_the_boundary_decides_if_it_holds_only_structure():
    own = [thing("cat", 10, 20, 30, 40), thing("cat", 50, 60, 70, 80)]
    (_, first), (before, wanted) = boundaries("words", json.dumps(own), own[1])
    assert first == '[{"'
    assert before == json.dumps(own[:1])[: -len("]}]")]
    assert wanted == "]},"
    # This tokenizer writes [] as two tokens, so the first of them should have stood where [{" stands.
    assert boundaries("words", json.dumps(own)) == [("", "["), (before, "]}]")]


def test_a_token_with_the_boundary_and_unknown_numbers_decides_nothing():
    text = json.dumps([thing("a", 1, 2, 3, 40), thing("a", 5, 6, 7, 8)])
    answer = written_with(["0]}, ", "0]}]"], text)
    assert answer.supervised_text() == (
        '[«{→]»"desc": "a", "bbox_2d": [1, 2, 3, 40]}, {"desc": "a", "bbox_2d": [5, 6, 7, 8]}«]»'
    )
    assert answer.counters["rollout/unaligned_slots"] == (1, 2)


def test_a_number_s_token_across_the_boundary_follows_the_expert():
    text = json.dumps([thing("a", 1, 2, 3, 40), thing("b", 5, 6, 7, 8)])
    tokens = ["0]}, ", "0]}]"]
    ends = written_with(tokens, text, thing("a", 1, 2, 3, 40)).supervised_text()
    assert "«3», «4·0]}, →0]}]»{" in ends
    goes_on = written_with(tokens, text, thing("a", 1, 2, 3, 40), thing("c", 50, 60, 70, 80)).supervised_text()
    assert "«3», «4·0]}, »{" in goes_on


def test_a_number_that_goes_on_is_trained_before_the_boundary():
    own = json.dumps([thing("a", 0, 0, 30, 3), thing("a", 5, 6, 7, 8)])
    answer = written_with(["]}, "], own, thing("a", 0, 0, 30, 3.5), thing("b", 90, 90, 99, 99))
    assert "«3·]}, →.»{" in answer.supervised_text()
    assert answer.field("boundary") == [1]
    ends_there = written_with(["]}, "], own, thing("a", 0, 0, 30, 3))
    assert "«3·]}, →]»{" in ends_there.supervised_text()


# --- classes --------------------------------------------------------------------------------------------------------


def test_a_matched_object_learns_the_description_of_its_truth():
    answer = expert("digits", json.dumps([EIGHT, {**THREE, "desc": "9"}]), THREE, EIGHT)
    assert answer.supervised_text() == (
        '[«{"desc": ·"8"», "bbox_2d": [«20», «24», «28», «32»]}'
        '«, »{"desc": «"9"→"3"», "bbox_2d": [«4», «8», «12», «16»]}«]»'
    )
    assert [answer.text_at(i) for i in answer.field("desc")] == ['"8"', '"9"']


def test_a_false_positive_learns_the_description_of_the_next_open_truth():
    answer = expert("digits", json.dumps([THREE, ONE, EIGHT]), THREE, thing("5", 20, 0, 28, 8), EIGHT)
    assert answer.supervised_text() == (
        '[«{"desc": ·"3"», "bbox_2d": [«4», «8», «12», «16»]}«, »{"desc": «"1"→"5"», "bbox_2d": [0, 32, 8, 40]}'
        '«, »{"desc": «"8"», "bbox_2d": [«20», «24», «28», «32»]}'
        '«, ·{"desc": ·"5"·, "bbox_2d": [·20·, ·0·, ·28·, ·8·]}·]»'
    )


def test_a_false_positive_with_nothing_open_has_no_description_to_learn():
    answer = expert("digits", json.dumps([THREE, ONE]), THREE)
    assert answer.supervised_text().endswith('«, →]»{"desc": "1", "bbox_2d": [0, 32, 8, 40]}«]»')


def test_behind_unmatched_coordinates_the_description_is_unknown():
    swapped = dict(reversed(thing("cat", 0, 32, 8, 40).items()))
    answer = expert("characters", json.dumps([swapped]), EIGHT)
    assert answer.field("desc") == []
    matched = expert("characters", json.dumps([swapped]), thing("dog", 0, 32, 8, 40))
    assert '"desc": "«c→d»at"}«]»' in matched.supervised_text()


@pytest.mark.parametrize(
    ("generated", "true", "supervised"),
    [
        ("cat", "cat", '"«c·a·t·"»,'),
        ("cat", "cow", '"«c·a→o»t",'),
        ("cat", "catfish", '"«c·a·t·"→f»,'),
        ("catfish", "cat", '"«c·a·t·f→"»ish",'),
        ("a cat on a mat", "a cat on the mat", '"«a· ·c·a·t· ·o·n· ·a→t» mat",'),
        ("", "cat", '"«"→c»,'),
        ("cat", "", '"«c→"»at",'),
        ("\\u00e9", "é", '"«\\·u·0·0·e·9·"»,'),
    ],
)
def test_a_description_is_supervised_up_to_its_first_wrong_token(generated, true, supervised):
    box = '"bbox_2d": [1, 2, 300, 400]'
    answer = expert("characters", f'[{{"desc": "{generated}", {box}}}]', thing(true, 1, 2, 300, 400))
    begin, end = '[«{»"desc": ', ' "bbox_2d": [«1», «2», «3·0·0», «4·0·0»]}«]»'
    assert answer.supervised_text() == begin + supervised + end


def test_a_character_of_several_tokens_is_decided_at_its_first():
    right = expert("characters", '[{"desc": "né", "bbox_2d": [1, 2, 3, 4]}]', thing("né", 1, 2, 3, 4))
    assert [right.targets[i] for i in right.field("desc")] == [right.ids[i] for i in right.field("desc")]
    answer = expert("characters", '[{"desc": "né", "bbox_2d": [1, 2, 3, 4]}]', thing("nü", 1, 2, 3, 4))
    n, e = answer.field("desc")
    assert (e, answer.text_at(n), answer.text_at(e)) == (n + 1, "n", "\N{REPLACEMENT CHARACTER}")
    assert slow_text(answer.tokenizer, [answer.targets[e]]) == "\\", "truths write it as \\u00fc here"
    assert answer.weights[e + 1] == 0, "behind half a character nothing is known"


def test_a_description_s_token_may_reach_into_the_coordinates():
    own, truth = thing("cat", 1, 2, 3, 4), thing("cat", 9, 2, 13, 4)
    text, tokens = json.dumps([own]), ['t", "bbox_2d": [1', 't", "bbox_2d": [9']
    speller_text = written_with(tokens, text, {**own, "desc": "cab"})
    assert '"«c·a·t", "bbox_2d": [1→b», «2», «3», «4»]}«]»' in speller_text.supervised_text()
    swapped = written_with(tokens, text, {**truth, "bbox_2d": [0.5, 2, 3, 4]})
    assert '"«c·a·t", "bbox_2d": [1→t», «2», «3», «4»]}«]»' in swapped.supervised_text()
    assert swapped.counters["rollout/unaligned_slots"] == (1, 6)


def test_descriptions_in_the_prefix_may_go_unsupervised():
    answer = expert("digits", json.dumps([{**THREE, "desc": "9"}]), THREE, supervise_desc=False)
    assert answer.supervised_text() == '[«{"desc": »"9", "bbox_2d": [«4», «8», «12», «16»]}«]»'


@pytest.mark.parametrize("value", ["oracle", "", None, True])
def test_another_prefix_supervision_is_refused(value):
    with pytest.raises(ValueError, match=r"prefix_supervision is .*; give one of coordinates, expert"):
        ObjectsTargetBuilder(tokenizer=tokenizer_named("digits"), prefix_supervision=value)


# --- the oracle is correct ------------------------------------------------------------------------------------------

WORDS = ["cat", "dog", "traffic light", "3", 'a "b"', "é", "猫 cat", "]}", "the cat on the second shelf from the left"]


@st.composite
def scenes(draw, kind):
    """Truths with descriptions of one to many tokens, and an answer that is right, wrong and superfluous in parts."""
    truths, text, valid, malformed = draw(answers(kind))
    if kind == "other":
        renamed = {json.dumps(t): {**t, "desc": draw(st.sampled_from(WORDS))} for t in truths}
        truths = list(renamed.values())
    return truths, text, valid, malformed


def only_pairs(valid, truths, malformed):
    """The matching, where there is just one: with ties it is not known here which one the builder took."""
    assume(not malformed)
    possible = best_pairs(valid, truths, 0.5)
    assume(len(possible) == 1)
    return possible[0]


def covered(text, truths):
    """Whether one object each of this answer can be matched with every truth."""
    found = parse_answer(text).objects
    allowed = iou_matrix([f.box for f in found], [t["bbox_2d"] for t in truths]) >= 0.5
    if not truths:
        return True
    return (maximum_bipartite_matching(csr_matrix(allowed.astype(np.int8).reshape(len(found), -1)), "row") >= 0).all()


def expert_answers(text, valid, truths, pairs):
    """
    Every answer of an expert that takes over within the generated one: its place, its text.

    It keeps the objects before some `m`, and of object `m` the first `k` of its five parts; the truth it writes there
    is the matched one, else the first open one; then come all that are open still, and the end.
    """
    for m in range(len(valid) + 1):
        open_truths = [j for j in range(len(truths)) if j not in [pairs.get(i) for i in range(m)]]
        own, start = valid[m] if m < len(valid) else (None, None)
        before = text[:start] if own else text[: valid[-1][1] + len(json.dumps(valid[-1][0]))] if valid else "["
        if not open_truths:
            yield before.removesuffix(", ") + "]"
            continue
        j = pairs.get(m, open_truths[0])
        rest = "".join(", " + json.dumps(truths[i]) for i in open_truths if i != j) + "]"
        separator = ", " if own is None and valid else ""
        yield before + separator + json.dumps(truths[j]) + rest
        if own is None:
            continue
        for k in range(1, 5) if m in pairs else ():
            numbers = own["bbox_2d"][: k - 1] + truths[j]["bbox_2d"][k - 1 :]
            yield before + json.dumps({"desc": own["desc"], "bbox_2d": numbers}) + rest


def follows(said, complete):
    """Whether `complete` goes on from what has been said, half a character at its end aside."""
    return complete.startswith(said.rstrip("\N{REPLACEMENT CHARACTER}"))


@pytest.mark.parametrize("name", MAKERS)
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_every_target_leads_to_an_answer_with_exactly_the_truths(name, data):
    truths, text, valid, malformed = data.draw(scenes("digits" if name == "digits" else "other"))
    pairs = only_pairs(valid, truths, malformed)
    answer = expert(name, text, *truths)
    complete = list(expert_answers(text, valid, truths, pairs))
    assert all(covered(whole, truths) for whole in complete)
    for i, weight in enumerate(answer.weights):
        said = slow_text(answer.tokenizer, [*answer.ids[:i], answer.targets[i]])
        if weight:
            assert any(follows(said, whole) for whole in complete), said


@pytest.mark.parametrize("name", MAKERS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_an_answer_that_follows_the_expert_is_complete_and_not_corrected(name, data):
    truths, text, valid, malformed = data.draw(scenes("digits" if name == "digits" else "other"))
    pairs = only_pairs(valid, truths, malformed)
    first = expert(name, text, *truths)
    trained = [i for i, weight in enumerate(first.weights) if weight]
    i = data.draw(st.sampled_from(trained))
    said = slow_text(first.tokenizer, [*first.ids[:i], first.targets[i]])
    whole = next(w for w in expert_answers(text, valid, truths, pairs) if follows(said, w))
    speller = ObjectsTargetBuilder(tokenizer=first.tokenizer).speller
    head = [*first.ids[:i], first.targets[i]]
    spelled = speller.spell(head)[0]
    followed = expert(name, [*head, *speller.encode(whole[len(spelled) :])], *truths)
    if followed.text != whole:
        return  # half a character was cut off
    assert followed.counters["rollout/appended"] == (0, 1)
    if len(best_pairs(located(whole), truths, 0.5)) > 1 or name not in ("digits", "characters"):
        return
    behind = [k for k in range(i + 1, len(followed.ids)) if followed.weights[k]]
    assert [followed.targets[k] for k in behind] == [followed.ids[k] for k in behind]


def located(text):
    objects = parse_answer(text).objects
    return [(thing(o.desc, *map(int, o.box)), o.span[0]) for o in objects]


@pytest.mark.parametrize("name", MAKERS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_supervised_where_is_known(name, data):
    truths, text, valid, malformed = data.draw(scenes("digits" if name == "digits" else "other"))
    pairs = only_pairs(valid, truths, malformed)
    answer = expert(name, text, *truths)
    ends = slow_ends(answer.tokenizer, answer.ids)
    starts = [0, *ends]
    cut = valid[-1][1] + len(json.dumps(valid[-1][0])) if valid else 1
    for i, weight in enumerate(answer.weights):
        if not weight or ends[i] > cut:
            continue
        for m, (item, at) in enumerate(valid):
            numbers = at + json.dumps(item).index('"bbox_2d": [') + len('"bbox_2d": [')
            if m not in pairs and starts[i] >= numbers and ends[i] < at + len(json.dumps(item)) - 1:
                raise AssertionError(f"coordinates of object {m}, which nothing matches, are trained")
            done = {pairs[k] for k in range(m) if k in pairs}
            if len(done) == len(truths) and at < starts[i] and ends[i] <= numbers:
                raise AssertionError(f"the description of object {m} is trained, and no truth is open")
