"""Strict reading of answers: what is an object, what is dropped, where reading stops."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_sft.data.truth import read_truth
from rollout_sft.targets.objects.parsing import parse_answer

GOOD = '{"desc": "cat", "bbox_2d": [1, 2, 30, 40]}'
OTHER = '{"desc": "dog", "bbox_2d": [5, 6, 70, 80]}'


def test_a_complete_list_gives_its_objects_and_the_places_of_their_parts():
    text = f" [{GOOD}, {OTHER}]\n"
    answer = parse_answer(text)
    assert (answer.malformed, answer.unclosed, answer.complete, answer.body_start) == (0, False, True, 2)
    cat, dog = answer.objects
    assert (cat.desc, cat.box) == ("cat", (1, 2, 30, 40))
    assert text[slice(*cat.span)] == GOOD
    assert text[slice(*dog.span)] == OTHER
    assert text[slice(*dog.desc_span)] == "dog"
    assert [text[slice(*span)] for span in dog.number_spans] == ["5", "6", "70", "80"]


def test_the_empty_list_is_complete():
    assert parse_answer("[]").complete
    assert parse_answer("[ ]").body_start == 1


@pytest.mark.parametrize(
    "bad",
    [
        '{"desc": "cat", "bbox_2d": [1, 2, 30]}',
        '{"desc": "cat", "bbox_2d": [1, 2, 30, 40, 50]}',
        '{"desc": "cat", "bbox_2d": [1, 2, 30, "40"]}',
        '{"desc": "cat", "bbox_2d": [1, 2, 30, true]}',
        '{"desc": "cat", "bbox_2d": [1, 2, 30, NaN]}',
        '{"desc": "cat", "bbox_2d": [1, 2, 30, Infinity]}',
        '{"desc": "cat", "bbox_2d": [1, 2, 30, 1e999]}',
        pytest.param('{"desc": "cat", "bbox_2d": [1, 2, 30, 1' + "0" * 400 + "]}", id="beyond floats"),
        pytest.param('{"desc": "cat", "bbox_2d": [1, 2, 30, 1' + "0" * 5000 + "]}", id="beyond int()"),
        pytest.param('{"desc": "cat", "bbox_2d": ' + "[" * 100_000 + "}", id="too deep"),
        '{"desc": "cat", "bbox_2d": [1, 2, 30, 040]}',
        '{"desc": "cat", "bbox_2d": [30, 2, 1, 40]}',
        '{"desc": "cat", "bbox_2d": [1, 40, 30, 40]}',
        '{"desc": "cat", "bbox_2d": "[1, 2, 30, 40]"}',
        '{"desc": "cat", "bbox_2d": {"x": 1}}',
        '{"desc": 7, "bbox_2d": [1, 2, 30, 40]}',
        '{"desc": null, "bbox_2d": [1, 2, 30, 40]}',
        '{"desc": "cat"}',
        '{"bbox_2d": [1, 2, 30, 40]}',
        '{"desc": "cat", "bbox_2d": [1, 2, 30, 40], "score": 1}',
        '{"desc": "cat", "desc": "dog", "bbox_2d": [1, 2, 30, 40]}',
        '{"label": "cat", "bbox_2d": [1, 2, 30, 40]}',
        '{"desc": "cat" "bbox_2d": [1, 2, 30, 40]}',
        '{"desc": "cat", "bbox_2d": [1, 2, 30, 40],}',
        "{'desc': 'cat', 'bbox_2d': [1, 2, 30, 40]}",
        '{"desc": "c\nat", "bbox_2d": [1, 2, 30, 40]}',
        "{}",
        "{" + GOOD + "}",
    ],
)
def test_a_malformed_object_is_dropped_and_counted_and_reading_goes_on(bad):
    answer = parse_answer(f"[{GOOD}, {bad}, {OTHER}]")
    assert [found.desc for found in answer.objects] == ["cat", "dog"]
    assert (answer.malformed, answer.unclosed, answer.complete) == (1, False, False)


@pytest.mark.parametrize(
    "good",
    [
        '{"bbox_2d": [1, 2, 30, 40], "desc": "cat"}',
        '{"desc":"cat","bbox_2d":[1,2,30,40]}',
        '{ "desc" :\t"cat" ,\n "bbox_2d" : [ 1 , 2 , 30 , 40 ] }',
        '{"desc": "cat", "bbox_2d": [-1, 2.5, 3e1, 4E+1]}',
        '{"\\u0064esc": "cat", "bbox_2d": [1, 2, 30, 40]}',
    ],
)
def test_every_way_json_may_write_an_object_is_valid(good):
    answer = parse_answer(f"[{good}]")
    assert answer.complete
    (found,) = answer.objects
    assert good[found.desc_span[0] - 1 : found.desc_span[1] - 1] == "cat"
    assert [float(good[a - 1 : b - 1]) for a, b in found.number_spans] == list(found.box)


@pytest.mark.parametrize("desc", ["}", "{", "]}", '", "bbox_2d": [1, 2', "\\", '"', '\\"', "7", "é", "a: b"])
def test_braces_quotes_and_numbers_within_a_description_mean_nothing(desc):
    text = json.dumps([{"desc": desc, "bbox_2d": [1, 2, 30, 40]}, {"desc": "dog", "bbox_2d": [5, 6, 70, 80]}])
    answer = parse_answer(text)
    assert [found.desc for found in answer.objects] == [desc, "dog"]
    assert json.loads('"' + text[slice(*answer.objects[0].desc_span)] + '"') == desc
    assert [text[slice(*span)] for span in answer.objects[0].number_spans] == ["1", "2", "30", "40"]


@pytest.mark.parametrize("text", ["", "   ", "cat", "Sure: [" + GOOD + "]", GOOD, '"[' + GOOD + ']"', "\x0b[]"])
def test_text_that_does_not_start_with_a_list_gives_nothing(text):
    answer = parse_answer(text)
    assert (answer.objects, answer.malformed, answer.body_start, answer.complete) == ((), 0, None, False)


@pytest.mark.parametrize(
    ("text", "found", "malformed"),
    [
        (f"[{GOOD} {OTHER}]", ["cat"], 1),
        (f"[{GOOD}, 7, {OTHER}]", ["cat"], 1),
        (f"[{GOOD},, {OTHER}]", ["cat"], 1),
        (f"[, {OTHER}]", [], 1),
        (f"[[{GOOD}], {OTHER}]", [], 1),
        (f"[{GOOD}, ]", ["cat"], 1),
        (f"[{GOOD}}}, {OTHER}]", ["cat"], 1),
    ],
)
def test_reading_stops_where_the_list_breaks(text, found, malformed):
    answer = parse_answer(text)
    assert [o.desc for o in answer.objects] == found
    assert (answer.malformed, answer.complete, answer.unclosed) == (malformed, False, False)


def test_what_follows_the_list_makes_it_incomplete_but_loses_nothing():
    answer = parse_answer(f"[{GOOD}] and {OTHER}")
    assert [found.desc for found in answer.objects] == ["cat"]
    assert (answer.complete, answer.malformed) == (False, 0)


@given(st.integers(0, len(f"[{GOOD}, {OTHER}]") - 1))
def test_a_truncated_list_keeps_its_complete_objects(cut):
    text = f"[{GOOD}, {OTHER}]"[:cut]
    answer = parse_answer(text)
    assert len(answer.objects) == text.count("]}")
    assert not answer.complete
    assert answer.malformed == 0
    assert answer.unclosed == (text.count("{") > text.count("}"))


def test_a_brace_in_a_description_that_was_cut_off_closes_nothing():
    answer = parse_answer(f'[{GOOD}, {{"desc": "}}, {{}}')
    assert ([found.desc for found in answer.objects], answer.malformed, answer.unclosed) == (["cat"], 0, True)


@given(st.text(alphabet='[]{},:" \\desc4bo-.e', max_size=60))
def test_complete_answers_are_json_and_found_objects_are_json_objects(text):
    answer = parse_answer("[" + text)
    if answer.complete:
        assert len(json.loads("[" + text)) == len(answer.objects)
    for found in answer.objects:
        loaded = json.loads(("[" + text)[slice(*found.span)])
        assert loaded == {"desc": found.desc, "bbox_2d": list(found.box)}


def test_a_deep_or_endless_answer_is_read_in_linear_time():
    assert parse_answer("[" + "{" * 200_000).unclosed
    assert parse_answer('[{"' + "\\" * 200_000).unclosed


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (None, "sample 'a': objects is NoneType None"),
        ("x", "objects is str 'x'"),
        ([7], r"objects\[0\] is int 7"),
        ([{"bbox_2d": [1, 2, 3, 4]}], r"objects\[0\] has no 'desc', only \['bbox_2d'\]"),
        ([{"desc": "a"}], r"objects\[0\] has no 'bbox_2d'"),
        ([{"desc": 3, "bbox_2d": [1, 2, 3, 4]}], r"objects\[0\]\.desc is int 3"),
        ([{"desc": "a", "bbox_2d": [1, 2, 3]}], r"objects\[0\]\.bbox_2d is list \[1, 2, 3\]; give four finite"),
        ([{"desc": "a", "bbox_2d": [3, 2, 1, 4]}], "x1 < x2 and y1 < y2"),
        ([{"desc": "a", "bbox_2d": [1, 2, 1, 4]}], "x1 < x2 and y1 < y2"),
        ([{"desc": "a", "bbox_2d": [1, 2, 3, float("nan")]}], "finite"),
        ([{"desc": "a", "bbox_2d": [True, 2, 3, 4]}], "finite"),
    ],
)
def test_a_malformed_truth_is_refused_by_sample_and_field(objects, message):
    with pytest.raises(ValueError, match=message):
        read_truth(objects, "sample 'a'")


def test_the_truth_is_written_with_its_numbers_and_without_other_keys():
    (truth,) = read_truth([{"desc": "é", "bbox_2d": (1, 2.5, 3, 4), "area": 7}], "x")
    assert truth.as_json() == '{"desc": "é", "bbox_2d": [1, 2.5, 3, 4]}'
    assert truth.as_json(ensure_ascii=True) == '{"desc": "\\u00e9", "bbox_2d": [1, 2.5, 3, 4]}'
