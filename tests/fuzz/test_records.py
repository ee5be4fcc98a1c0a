"""No JSONL file, however damaged, raises anything but the documented errors; what is loaded can be encoded."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_sft.data.records import load_records
from tests.fuzz.cases import cases
from tests.fuzz.values import MUTATIONS, NUMBERS, TEXTS, VALUES, mutated
from tests.limits import refusal
from tests.rollout_sft.targets.tokenizers import MAKERS

pytestmark = pytest.mark.fuzz

GOOD = "".join(
    json.dumps(row) + "\n"
    for row in (
        {"prompt": "where? \ud83d\ude00", "objects": [{"desc": "cat", "bbox_2d": [1, 2, 3.5, 4]}], "id": "a"},
        {"messages": [{"role": "user", "content": "where?"}], "objects": [], "further": {"x": [1, None]}},
    )
)


@pytest.fixture
def read(tmp_path):
    tokenizer = MAKERS["words"]()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"

    def load_and_encode(path):
        dataset = load_records(str(path), tokenizer)
        for i in range(len(dataset)):
            assert dataset[i]["id"]

    def read(raw):
        (tmp_path / "case.jsonl").write_bytes(raw)
        return refusal(load_and_encode, tmp_path / "case.jsonl")

    return read


def test_the_records_that_are_damaged_below_are_good(read):
    assert read(GOOD.encode()) is None


@cases(300)
@given(raw=st.binary(max_size=200))
def test_any_bytes(read, raw):
    read(raw)


@cases(700)
@given(mutations=MUTATIONS)
def test_good_records_that_were_damaged(read, mutations):
    read(mutated(GOOD, mutations).encode("utf-8", "surrogatepass"))


def optional(**fields):
    return st.fixed_dictionaries({}, optional=fields)


MESSAGE = optional(role=TEXTS | VALUES, content=TEXTS | VALUES, x=VALUES)
OBJECT = optional(desc=TEXTS | VALUES, bbox_2d=st.lists(NUMBERS, max_size=5) | VALUES)
ROW = optional(
    prompt=TEXTS | VALUES,
    messages=st.lists(MESSAGE, max_size=3) | VALUES,
    objects=st.just([]) | st.lists(OBJECT, max_size=3) | VALUES,
    id=VALUES,
    prompt_ids=VALUES,
    further=VALUES,
)


@cases(900)
@given(rows=st.lists(ROW, min_size=1, max_size=3))
def test_any_values_in_the_known_fields(read, rows):
    read("".join(json.dumps(row) + "\n" for row in rows).encode())


@cases(600)
@given(good=st.sampled_from(GOOD.splitlines()), odd=ROW)
def test_good_records_with_one_odd_field(read, good, odd):
    row = json.loads(good)
    for key, value in list(odd.items())[:1]:
        row[key] = value
    read((json.dumps(row) + "\n").encode())
