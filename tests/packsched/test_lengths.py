"""Tokens are counted as the tokenizer encodes them, in every shape that records have."""

import json
import sys

import pytest
from tokenizers.processors import TemplateProcessing
from typer.testing import CliRunner

from examples.digits.tokenizer import build_digits_tokenizer
from packsched.commands import commands
from packsched.files import FileError
from packsched.lengths import AT_A_TIME, count_tokens, load_tokenizer, read_records
from packsched.traces import read_trace
from rollout_sft.data.prompts import Prompts


@pytest.fixture(scope="module")
def tokenizer():
    made = build_digits_tokenizer()
    made.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    return made


def counted(tokenizer, *records, columns=()):
    return list(count_tokens([(f"d, line {n}", record) for n, record in enumerate(records, 1)], tokenizer, columns))


def test_texts_messages_and_token_ids_are_counted_as_they_are_encoded(tokenizer):
    messages = [{"role": "user", "content": "12 8"}, {"role": "assistant", "content": '"3"'}]
    encoded = tokenizer('<user>12 8<assistant>"3"')["input_ids"]
    records = [
        {"text": "12 8 4"},
        {"messages": messages, "text": "12"},
        {"prompt": "12 8", "completion": " 4"},
        {"prompt": messages[:1], "completion": messages[1:]},
        {"prompt": [3, 4, 5], "completion": [6]},
        {"prompt": "12"},
    ]
    three = len(tokenizer("12 8 4")["input_ids"])
    assert counted(tokenizer, *records) == [three, len(encoded), three, len(encoded), 4, 1]
    assert three >= 3


def test_special_tokens_and_templates_count_as_in_training():
    tokenizer = build_digits_tokenizer()
    eos = tokenizer.eos_token
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"{eos} $A", special_tokens=[(eos, tokenizer.eos_token_id)]
    )
    tokenizer.chat_template = (
        "<eos>{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<ans>{% endif %}"
    )
    records = [{"prompt": "12 8"}, {"messages": [{"role": "user", "content": "12 8"}]}]
    trained = [len(Prompts(tokenizer).encode(record)) for record in records]
    assert counted(tokenizer, *records) == trained
    plain = len(tokenizer("12 8", add_special_tokens=False)["input_ids"])
    assert trained == [plain + 1, plain + 2], "a text gets the special token, a template writes it itself"
    answered = {"messages": [*records[1]["messages"], {"role": "assistant", "content": '"3"'}]}
    assert counted(tokenizer, answered) == [plain + 2], "an answer that is there is not asked for"


def test_a_tokenizer_of_the_users_own_is_made_by_its_function(tmp_path, monkeypatch):
    (tmp_path / "own_words.py").write_text("from examples.digits.tokenizer import build_digits_tokenizer as make\n")
    (tmp_path / "data.jsonl").write_text('{"text": "12 8"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [part for part in sys.path if part])  # a console script does not look in ""
    done = CliRunner().invoke(commands, ["lengths", "data.jsonl", "--tokenizer", "own_words:make"])
    assert done.stdout == f'{{"length": {len(build_digits_tokenizer()("12 8")["input_ids"])}}}\n', done.stderr


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("no_such_module:make", "gives no tokenizer: ModuleNotFoundError: No module named 'no_such_module'"),
        ("json:no_such", "gives no tokenizer: AttributeError: module 'json' has no attribute 'no_such'"),
        ("json:loads", "gives no tokenizer: TypeError: loads.. missing 1 required positional argument: 's'"),
        ("builtins:dict", "returned a dict; it takes a tokenizer of transformers"),
    ],
)
def test_a_function_that_makes_no_tokenizer_is_named(path, says):
    with pytest.raises(FileError, match=f"--tokenizer {path} {says}"):
        load_tokenizer(path)


def test_chosen_columns_are_counted_together(tokenizer):
    assert counted(tokenizer, {"a": [1, 2], "b": [3], "text": "12"}, columns=["a", "b"]) == [3]


def test_more_records_than_are_encoded_at_once_keep_their_order(tokenizer):
    records = [{"text": '"3"' * (1 + n % 7)} for n in range(AT_A_TIME + 5)]
    assert counted(tokenizer, *records) == [1 + n % 7 for n in range(AT_A_TIME + 5)]


@pytest.mark.parametrize(
    ("record", "columns", "says"),
    [
        ({"txt": "12"}, (), "has no messages, prompt or text; it has txt. Name the columns to count with --column"),
        ({"text": "12"}, ["a"], "has no a; it has text"),
        ({"text": 12}, (), "column 'text' holds int; give texts"),
        ({"text": "12", "note": None}, ["text", "note"], "column 'note' is empty; leave the record out, or name other"),
        ({"prompt": "12", "completion": [3]}, (), "column 'prompt' holds str, column 'completion' holds list; give"),
        ({"text": ""}, (), "has no tokens; leave it out"),
        ({"messages": [{"content": 5}]}, (), "chat template refuses"),
    ],
)
def test_a_bad_record_is_refused_by_its_place(tokenizer, record, columns, says):
    template, tokenizer.chat_template = tokenizer.chat_template, "{{ messages[0].role.x.y }}"
    try:
        with pytest.raises(FileError, match=f"^d, line 1: .*{says}"):
            counted(tokenizer, record, columns=columns)
    finally:
        tokenizer.chat_template = template


@pytest.mark.parametrize("line", [b"5\n", b"{\n", b"\n"])
def test_a_line_that_is_no_object_is_refused_by_its_number(tmp_path, line):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "12"}\n' + line)
    with pytest.raises(FileError, match=f"{path}, line 2: not a JSON object"):
        list(read_records(str(path)))


@pytest.mark.parametrize(
    ("name", "says"),
    [("gone.jsonl", "cannot be read: No such file"), ("gone.parquet", "cannot be read: No such file")],
)
def test_missing_files_are_not_looked_up_anywhere(tmp_path, name, says):
    with pytest.raises(FileError, match=says):
        list(read_records(str(tmp_path / name)))


def test_files_of_datasets_are_read_like_json_lines(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "train.csv"
    path.write_text("text\n12\n8 4\n")
    for source in (path, path.parent):
        assert [record["text"] for _, record in read_records(str(source))] == ["12", "8 4"]
    path.write_text("text,note\n12,\n8 4,\n7,9\n")
    assert [place for place, _ in read_records(str(path))] == [f"{path}, record {number}" for number in (1, 2, 3)]
    with pytest.raises(FileError, match=r"datasets does not read it \(split 'gone'\)"):
        list(read_records(str(path.parent), split="gone"))


@pytest.mark.parametrize("missing", ["transformers", "datasets"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(FileError, match=f"{missing}, which is not installed. Install it: pip install {missing}"):
        load_tokenizer("any") if missing == "transformers" else list(read_records("any"))


def test_the_command_counts_the_columns_that_are_named(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "data.jsonl").write_text(json.dumps({"text": '"3"', "question": '"3"' * 2, "context": '"3"' * 4}))
    arguments = ["lengths", str(tmp_path / "data.jsonl"), "--tokenizer", str(tmp_path / "tokenizer")]
    lens = [
        CliRunner().invoke(commands, [*arguments, *columns]).stdout
        for columns in ([], ["--column", "question"], ["--column", "question", "--column", "context"])
    ]
    assert lens == [f'{{"length": {n}}}\n' for n in (1, 2, 6)]


def test_the_command_writes_a_trace_that_replay_reads(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    data, out = tmp_path / "data.jsonl", tmp_path / "trace.jsonl"
    data.write_text("".join(json.dumps({"text": '"3"' * n}) + "\n" for n in (3, 1, 2)))
    arguments = ["lengths", str(data), "--tokenizer", str(tmp_path / "tokenizer")]
    done = CliRunner().invoke(commands, [*arguments, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert read_trace(str(out)).encoded_lens.tolist() == [3, 1, 2]
    assert "3 records, 6 tokens: mean 2, median 2, 90 % up to 3, longest 3." in " ".join(done.stderr.split())
    printed = CliRunner().invoke(commands, arguments)
    assert printed.stdout == out.read_text()
    data.write_text("")
    empty = CliRunner().invoke(commands, [*arguments, "--out", str(out)])
    assert (empty.exit_code, "holds no records" in empty.stderr) == (2, True)
    assert len(read_trace(str(out))) == 3, "a failed count leaves the file as it was"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "a", "text": "b"}', "line 1: the key 'text' is given twice; keep one"),
        ('{"text": "a"}\n{"text": "\\ud800"}', "line 2: the tokenizer refuses the text: "),
    ],
)
def test_a_record_that_no_tokenizer_can_take_is_named(tokenizer, tmp_path, line, says):
    (tmp_path / "a.jsonl").write_text(line + "\n")
    with pytest.raises(FileError, match=says):
        list(count_tokens(read_records(str(tmp_path / "a.jsonl")), tokenizer))


def test_a_path_that_is_none_is_named():
    with pytest.raises(FileError, match="cannot be read: embedded null byte"):
        list(read_records("a\0b.jsonl"))
