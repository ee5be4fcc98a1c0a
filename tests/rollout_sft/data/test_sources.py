"""Where rows come from: local files by their suffix, lists of sources, and never a hub for a path that is missing."""

import csv
import json
import os

import pyarrow
import pytest
from pyarrow.parquet import write_table

from rollout_sft.config.sections import DataSpec
from rollout_sft.data.loading import load_dataset
from rollout_sft.data.records import load_records
from rollout_sft.data.sources import local_path, read_rows
from tests.rollout_sft.targets.tokenizers import tokenizer_named

OBJECTS = [{"desc": "cat, black", "bbox_2d": [1, 2, 3, 4]}]
ROWS = [{"prompt": "where?", "objects": OBJECTS, "id": "a"}, {"prompt": "line 1\nline 2", "objects": [], "note": "x"}]
WORDS = tokenizer_named("words")


def write(folder, kind):
    path = folder / f"data{kind}"
    if kind == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == ".json":
        path.write_text("\ufeff " + json.dumps(ROWS, indent=1), encoding="utf-8")
    elif kind == ".parquet":
        columns = {name: [row.get(name) for row in ROWS] for name in ("id", "prompt", "objects", "note")}
        write_table(pyarrow.table(columns), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "prompt", "objects", "note"])
            writer.writeheader()
            writer.writerows({**row, "objects": json.dumps(row["objects"])} for row in ROWS)
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_kind_of_file_gives_the_same_records(tmp_path, kind):
    records = load_records(str(write(tmp_path, kind)), WORDS).records
    assert [{k: v for k, v in r.items() if k != "id"} for r in records] == [
        {k: v for k, v in r.items() if k != "id"} for r in ROWS
    ]
    assert records[0]["id"] == "a"
    assert "note" not in records[0], "a cell without a value is no column of the record"
    assert records[1]["id"].startswith(str(tmp_path)), "named by file and row"


def test_a_json_file_may_hold_one_object_a_line(tmp_path):
    (tmp_path / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert [row for _, row in read_rows(str(tmp_path / "lines.json"))] == ROWS


def test_a_list_of_sources_is_read_in_order(tmp_path):
    spec = DataSpec(source=[str(write(tmp_path, kind)) for kind in (".jsonl", ".parquet")], size=3)
    dataset = load_dataset(spec, WORDS, seed=0)
    assert [record["prompt"] for record in dataset.records] == ["where?", "line 1\nline 2", "where?"]


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, ".jsonl")
    assert len(load_records("~/data.jsonl", WORDS)) == 2


@pytest.mark.parametrize("source", ["gone.json", "gone.parquet", "./gone", "../gone/data", "/gone/data", "~/gone.csv"])
def test_a_missing_local_file_is_never_looked_up_on_a_hub(source, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: pytest.fail("asked a hub"))
    with pytest.raises(FileNotFoundError, match=r"no such file; the path is taken from .*not looked up on a hub"):
        load_records(source, WORDS)


def test_names_are_left_to_datasets():
    assert [local_path(name) for name in ("owner/name", "squad", "owner/name.v2")] == [None, None, None]


REFUSED = {
    "text file": ("data.txt", "{}", r"data\.txt: files of this kind are not read; give \.jsonl, \.json, \.csv or"),
    "JSON cut off": ("data.json", '[{"prompt": "a"', r"data\.json: not JSON: .*give a list of objects"),
    "JSON key twice": (
        "data.json",
        '[{"prompt": "a", "prompt": "b"}]',
        r"data\.json: an object gives the key 'prompt' tw",
    ),
    "CSV column twice": (
        "data.csv",
        "prompt,prompt\na,b\n",
        r"data\.csv:1: the header gives the column 'prompt' twice",
    ),
    "JSON deep": ("data.json", '[{"a": ' + "[" * 70 + "]" * 70 + "}]", r"data\.json\[0\]: more than 64 objects"),
    "CSV cell too many": ("data.csv", "prompt,objects\na,[],3\n", r"data\.csv:2: 3 cells, but the header has 2"),
    "CSV cell too few": ("data.csv", "prompt,objects\na\n", r"data\.csv:2: 1 cells, but the header has 2"),
    "CSV objects": ("data.csv", "prompt,objects\na,cat\n", r"data\.csv:2: column objects is 'cat', which is not JSON"),
    "Parquet": ("data.parquet", "no", r"data\.parquet: not Parquet: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_damaged_file_is_refused_by_its_name_and_row(tmp_path, name):
    file, text, message = REFUSED[name]
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_records(str(tmp_path / file), WORDS)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_pipe_or_a_device_is_refused_before_it_is_opened(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(ValueError, match=rf"{name}\{suffix}: a pipe or a device, which may never end"):
            list(read_rows(str(tmp_path / f"{name}{suffix}")))


def test_what_datasets_cannot_load_is_named(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(ValueError, match=r"owner/name is no local file, and datasets cannot load it .*'eval'.*no net"):
        load_records("owner/name", WORDS, split="eval")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "https://example.com/train.jsonl",
            r"^https://example\.com/train\.jsonl: addresses are not read; download the",
        ),
        ("hf://datasets/a/b", "^hf://datasets/a/b: addresses are not read; download the file and give its path"),
        ("*.jsonl", r"^\*\.jsonl: patterns are not expanded; give a list of files"),
        ("data/part-?", r"^data/part-\?: patterns are not expanded; give a list of files"),
        ("./", r"^\. is a folder, and datasets cannot load it as a data set; list its files instead "),
    ],
)
def test_what_is_no_file_and_no_data_set_is_refused_before_a_hub_is_asked(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_records(source, WORDS)


def test_a_file_with_the_signs_of_a_pattern_in_its_name_is_read(tmp_path):
    write(tmp_path, ".jsonl")
    (tmp_path / "data.jsonl").rename(tmp_path / "data[1].jsonl")
    assert len(load_records(str(tmp_path / "data[1].jsonl"), WORDS)) == 2


def test_an_import_path_in_a_list_is_refused():
    spec = DataSpec(source=["a.jsonl", "module:function"])
    with pytest.raises(ValueError, match=r"data\.train\.source lists 'module:function', which is an import path"):
        load_dataset(spec, WORDS, seed=0)


def test_a_name_that_is_given_twice_is_refused_in_every_format(tmp_path):
    one = pyarrow.array([1])
    inner = pyarrow.StructArray.from_arrays([one, one], names=["x", "x"])
    tables = {
        "columns": pyarrow.Table.from_arrays([one, one], names=["a", "a"]),
        "fields": pyarrow.Table.from_arrays([inner], names=["a"]),
        "in_lists": pyarrow.Table.from_arrays([pyarrow.ListArray.from_arrays([0, 1], inner)], names=["a"]),
    }
    for name, table in tables.items():
        write_table(table, tmp_path / f"{name}.parquet")
        with pytest.raises(ValueError, match=r"gives the name '[ax]' twice; keep one"):
            list(read_rows(str(tmp_path / f"{name}.parquet")))
    for name, text in {
        "a.jsonl": '{"a": 1, "a": 2}\n',
        "a.json": '[{"b": {"a": 1, "a": 2}}]',
        "cell.csv": 'objects\n"[{""a"": 1, ""a"": 2}]"\n',
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=r"an object gives the key 'a' twice; keep one"):
            list(read_rows(str(tmp_path / name)))
