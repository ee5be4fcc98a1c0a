"""Damaged and hostile JSONL: file and line, a short message, at most 2 s and 200 MB."""

import json
import re

import pytest

from rollout_sft.data.json_lines import DuplicateKeyError, unique_keys
from rollout_sft.data.prompts import PLACE
from rollout_sft.data.records import load_records
from tests.limits import refusal
from tests.rollout_sft.data.image_models import image_adapter, image_tokenizer
from tests.rollout_sft.targets.tokenizers import MAKERS, tokenizer_named

WORDS = tokenizer_named("words")
GOOD = {"prompt": "where?", "objects": []}


def with_field(**fields):
    return json.dumps({**GOOD, **fields})


HOSTILE = {
    "100,000 open brackets": ('{"prompt": ' + "[" * 100_000, "more than 64 objects and lists lie within each other"),
    "500 nested lists": (with_field(x=0).replace("0}", "[" * 500 + "]" * 500 + "}"), "more than 64 objects and lists"),
    "65 nested objects": (with_field(x=0).replace("0}", '{"a": ' * 64 + "1" + "}" * 65), "more than 64 objects and"),
    "an integer of 5,000 digits": (with_field(x=0).replace("0}", "9" * 5000 + "}"), "an integer of more digits"),
    "half of a surrogate pair in a prompt": (with_field(prompt="a \ud83d b"), "the text 'a .ud83d b' holds half of a"),
    "half of one in a message": (
        '{"messages": [{"role": "user", "content": "\\udc00"}], "objects": []}',
        "the text '.udc00' holds half of a surrogate pair",
    ),
    "half of one in a key": ('{"prompt": "a", "objects": [], "\\ud800": 1}', "holds half of a surrogate pair"),
    "a prompt of 2 MB that is a list": (with_field(prompt=["x" * 2_000_000]), r"prompt is \['xxx.*give a text"),
    "messages of 2 MB": (
        json.dumps({"messages": ["x" * 2_000_000], "objects": []}),
        r"messages\[0\] is 'xxx.*give \{",
    ),
    "messages that are 2 MB of text": (json.dumps({"messages": "x" * 2_000_000, "objects": []}), "messages is 'xxx"),
    "150,000 keys": (json.dumps({f"k{i}": 1 for i in range(150_000)}), "neither of messages and prompt"),
    "a line of 10 MB": (with_field(prompt="x" * 10_000_000), "longer than 2097152 bytes"),
    "650,000 empty lists": (with_field(objects=[[]] * 650_000).replace(" ", ""), r"objects\[0\] is list \[\]"),
    "a box of 2 MB": (
        with_field(objects=[{"desc": "a", "bbox_2d": "9" * 2_000_000}]),
        r"objects\[0\]\.bbox_2d is str '999.*four finite numbers",
    ),
    "an id of 2 MB": (with_field(id="x" * 2_000_000), "id is 'xxx.*give a text or an integer of 1 to 200"),
    "a key twice": (
        '{"prompt": "a", "objects": [], "prompt": "b"}',
        "an object gives the key 'prompt' twice; keep one",
    ),
    "a key twice in an object": (
        with_field(x=0).replace("0}", '{"a": 1, "a": 2}}'),
        "an object gives the key 'a' twice",
    ),
    "150,000 keys, the last one twice": (
        json.dumps({f"k{i}": 1 for i in range(150_000)}).replace("k149999", "k149998"),
        "an object gives the key 'k149998' twice",
    ),
    "an empty id": (with_field(id=""), "id is ''; give a text or an integer of 1 to 200"),
    "an id that is a list": (with_field(id=[1]), r"id is \[1\]; give a text or an integer"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_line_is_refused_within_the_limits(tmp_path, name):
    line, message = HOSTILE[name]
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n")
    refused = refusal(load_records, str(path), WORDS)
    assert refused is not None
    assert refused.startswith(f"{path}:2: ")
    assert re.search(message, refused), refused


def test_a_key_twice_is_an_error_of_its_own():
    with pytest.raises(DuplicateKeyError, match=r"^an object gives the key 'a' twice; keep one\.$"):
        unique_keys([("a", 1), ("b", 2), ("a", 3)])


def test_a_path_that_no_file_can_have_is_refused():
    assert "no such file" in refusal(load_records, "x" * 10_000 + ".jsonl", WORDS)
    assert "no such file" in refusal(load_records, "a\0b.jsonl", WORDS)


def test_escapes_that_are_characters_are_read(tmp_path):
    path = tmp_path / "good.jsonl"
    path.write_text('{"prompt": "\\ud83d\\ude00 \\u00e9", "objects": []}\n')
    assert load_records(str(path), MAKERS["words"]()).records[0]["prompt"] == "😀 é"


def test_nesting_within_the_limit_is_read(tmp_path):
    path = tmp_path / "good.jsonl"
    path.write_text(with_field(x=0).replace("0}", "[" * 63 + "]" * 63 + "}"))
    assert len(load_records(str(path), WORDS)) == 1


@pytest.mark.parametrize(
    ("text", "as_messages"),
    [("a b " * 500_000, False), ("a b " * 500_000, True), (PLACE * 280_000, False)],
    ids=["prompt", "messages", "places"],
)
def test_a_prompt_of_2_mb_for_an_image_model_is_read_within_the_limits(tmp_path, text, as_messages):
    path = tmp_path / "data.jsonl"
    given = {"messages": [{"role": "user", "content": text}]} if as_messages else {"prompt": text}
    path.write_text(json.dumps({**given, "images": [], "objects": []}))
    tokenizer = image_tokenizer()
    adapter = image_adapter(tokenizer)
    message = refusal(lambda: load_records(str(path), tokenizer, adapter=adapter, longest_prompt=1000))
    assert (message is None) == (PLACE not in text)
    assert message is None or re.search(r"280000 places for images .* 0", message)
