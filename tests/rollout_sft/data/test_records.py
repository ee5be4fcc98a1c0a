"""The user's own records: every problem is named by file, line and field, and nothing is skipped."""

import json

import pytest

from rollout_sft.data.records import load_records
from tests.rollout_sft.targets.tokenizers import MAKERS, tokenizer_named

OBJECTS = [{"desc": "cat", "bbox_2d": [1, 2, 3, 4]}]
PROMPT = {"prompt": "where?", "objects": OBJECTS}
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
)
WORDS = tokenizer_named("words")


@pytest.fixture
def chat():
    tokenizer = MAKERS["words"]()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def jsonl(folder, *rows):
    path = folder / "data.jsonl"
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return str(path)


def test_a_file_of_prompts_becomes_samples(tmp_path):
    path = jsonl(tmp_path, PROMPT, {**PROMPT, "id": 7, "objects": [], "source": "x"})
    dataset = load_records(path, WORDS)
    assert len(dataset) == 2
    assert dataset[0] == {"id": f"{path}:1", "prompt_ids": WORDS("where?")["input_ids"], "objects": OBJECTS}
    assert (dataset[1]["id"], dataset[1]["objects"]) == ("7", [])


def test_further_columns_reach_the_sample_as_they_are(tmp_path, chat):
    further = {"answer": "on the mat", "image": {"path": "cat.png", "size": [4, 3]}, "weight": 0.5, "note": None}
    path = jsonl(tmp_path, {**PROMPT, **further, "id": 3}, {"messages": [{"role": "user", "content": "a"}], **further})
    dataset = load_records(path, chat, require_objects=False)
    assert dataset[0] == {"id": "3", "prompt_ids": WORDS("where?")["input_ids"], "objects": OBJECTS, **further}
    assert dataset[1] == {"id": f"{path}:2", "prompt_ids": dataset[1]["prompt_ids"], **further}
    assert load_records(path, chat, limit=1)[0] == dataset[0]


def test_objects_are_checked_only_where_they_are_required(tmp_path):
    rows = [{"prompt": "where?", "answer": "here"}, {"prompt": "where?", "objects": "a table and a chair"}]
    dataset = load_records(jsonl(tmp_path, *rows), WORDS, require_objects=False)
    assert ("objects" in dataset[0], dataset[1]["objects"]) == (False, "a table and a chair")
    with pytest.raises(
        ValueError, match=r"data\.jsonl:1: objects is missing; .*target_builder that reads other columns"
    ):
        load_records(jsonl(tmp_path, *rows), WORDS)
    with pytest.raises(ValueError, match=r"data\.jsonl:1: objects is str"):
        load_records(jsonl(tmp_path, rows[1]), WORDS)


def test_a_data_set_of_the_datasets_library_keeps_its_columns(tmp_path):
    jsonl(tmp_path, {"prompt": "a", "answer": "b", "weight": 0.5}, {"prompt": "c", "answer": "d"})
    dataset = load_records(str(tmp_path), WORDS, require_objects=False)
    assert [dataset[i]["answer"] for i in range(2)] == ["b", "d"]
    assert ["weight" in dataset[i] for i in range(2)] == [True, False]


def test_messages_get_the_chat_template_and_the_generation_prompt(tmp_path, chat):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "where?"}]
    dataset = load_records(jsonl(tmp_path, {"messages": messages, "objects": OBJECTS}), chat)
    assert WORDS.decode(dataset[0]["prompt_ids"]) == "<system>s<user>where?<model>"


def test_the_limit_takes_the_first_records_and_reads_no_further(tmp_path):
    assert len(load_records(jsonl(tmp_path, PROMPT, PROMPT, b"broken"), WORDS, limit=2)) == 2


def test_a_data_set_of_the_datasets_library_is_loaded_by_name(tmp_path, chat):
    jsonl(
        tmp_path,
        {"messages": [{"role": "user", "content": "a"}], "objects": OBJECTS, "id": "x"},
        {"prompt": "b", "objects": []},
    )
    dataset = load_records(str(tmp_path), chat, split="train")
    assert [dataset[i]["id"] for i in range(2)] == ["x", f"{tmp_path}[train], row 1"]
    assert [dataset[i]["objects"] for i in range(2)] == [OBJECTS, []]
    assert [WORDS.decode(dataset[i]["prompt_ids"]) for i in range(2)] == ["<user>a<model>", "b"]


def test_a_bad_row_of_a_data_set_is_named_by_its_number(tmp_path):
    jsonl(tmp_path, PROMPT, {"prompt": "b", "objects": [{"desc": "a", "bbox_2d": [1, 2, 3]}]})
    with pytest.raises(ValueError, match=r"\[train\], row 1: objects\[0\]\.bbox_2d is list \[1, 2, 3\]"):
        load_records(str(tmp_path), WORDS)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"{'prompt'", "not JSON: Expecting property name .* at column 2; give one JSON object per line"),
        (b"", "the line is empty"),
        (b"  ", "the line is empty"),
        (b'{"prompt": "\xff"}', "not UTF-8: invalid start byte"),
        ([1], "a list; give an object with a prompt and objects"),
        ({"objects": []}, r"neither of messages and prompt; give one \(keys: \['objects'\]\)"),
        ({**PROMPT, "messages": []}, "both of messages and prompt"),
        ({"prompt": "x"}, r"objects is missing; .* \(keys: \['prompt'\]\)"),
        ({**PROMPT, "prompt": ""}, "prompt is ''; give a text that is not empty"),
        ({**PROMPT, "prompt_ids": [1]}, "prompt_ids is given, but it is made from prompt; rename or remove"),
        ({**PROMPT, "prompt": 3}, "prompt is 3; give a text"),
        ({**PROMPT, "objects": [{"desc": "a"}]}, r"objects\[0\] has no 'bbox_2d'"),
        ({"messages": [], "objects": []}, r"messages is \[\]; give a list with at least one message"),
        ({"messages": ["hello"], "objects": []}, r"messages\[0\] is 'hello'; give"),
        (
            {"messages": [{"role": "user", "content": None}], "objects": []},
            r"messages\[0\]\.content is None; give a text, or a list of parts",
        ),
        ({"messages": [{"role": "user", "content": 3}], "objects": []}, r"messages\[0\]\.content is 3; give a text"),
        ({"messages": [{"role": "assistant", "content": "[]"}], "objects": []}, "the last message is the assistant's"),
    ],
)
def test_a_malformed_line_is_refused_by_file_and_number(tmp_path, chat, row, message):
    path = jsonl(tmp_path, PROMPT, row, PROMPT)
    with pytest.raises(ValueError, match=rf"data\.jsonl:2: {message}"):
        load_records(path, chat)


def test_a_message_that_calls_tools_may_have_no_content(tmp_path, chat):
    calls = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    messages = [{"role": "assistant", "content": None, "tool_calls": calls}, {"role": "tool", "content": "3"}]
    (record,) = load_records(jsonl(tmp_path, {"messages": messages, "objects": []}), chat).records
    assert record["messages"] == messages


def test_messages_without_a_chat_template_are_refused(tmp_path):
    path = jsonl(tmp_path, {"messages": [{"role": "user", "content": "a"}], "objects": []})
    with pytest.raises(
        ValueError, match=r"data\.jsonl:1: messages need a chat template .* set tokenizer.chat_template"
    ):
        load_records(path, WORDS)


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data\.jsonl: no records; training needs at least one"):
        load_records(jsonl(tmp_path), WORDS)
    with pytest.raises(ValueError, match="no records within the limit of 0"):
        load_records(jsonl(tmp_path, PROMPT), WORDS, limit=0)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.jsonl: no such file"):
        load_records(str(tmp_path / "nothing.jsonl"), WORDS)


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path):
    assert len(load_records(jsonl(tmp_path, b"\xef\xbb\xbf" + json.dumps(PROMPT).encode()), WORDS)) == 1
