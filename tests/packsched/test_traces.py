"""A trace reads the same from every format; a bad line is refused by its file, number and value."""

import io
import json
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from packsched.files import FileError
from packsched.traces import read_trace

LENS, WINDOWS, RANKS = [700, 20, 4096, 1], [0, 0, 3, 3], [1, 0, 1, 0]


def write(folder, kind):
    """Writes the trace above in one format; returns what to pass to `read_trace`."""
    path = folder / f"trace.{kind}"
    columns = {"length": LENS, "window": WINDOWS, "rank": RANKS}
    rows = list(zip(LENS, WINDOWS, RANKS, strict=True))
    if kind == "jsonl":
        path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    elif kind == "csv":
        lines = [f'"a, ""b""\nc",{rank},{length}, {window}' for length, window, rank in rows]
        path.write_text("\n".join(["text,rank,length,window", *lines]))
    elif kind == "npy":
        np.save(path, np.array(rows, dtype=[(name, "i4") for name in columns]))
    else:
        pyarrow.parquet.write_table(pyarrow.table({**columns, "text": ["x"] * 4}), path)
    return str(path)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "npy", "parquet"])
def test_every_format_gives_the_same_lengths_windows_and_ranks(tmp_path, kind):
    trace = read_trace(write(tmp_path, kind))
    assert trace.encoded_lens.tolist() == LENS
    assert trace.windows.tolist() == WINDOWS
    assert trace.ranks.tolist() == RANKS
    assert len(trace) == 4


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_standard_input_reads_like_a_file(tmp_path, kind, monkeypatch):
    with open(write(tmp_path, kind), "rb") as file:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read())))
    assert read_trace("-").windows.tolist() == WINDOWS


def test_plain_numbers_have_neither_windows_nor_ranks(tmp_path):
    text, array = tmp_path / "lens.txt", tmp_path / "lens.npy"
    text.write_text("700\n20\n4096\n1\n")
    np.save(array, np.array(LENS, dtype=np.uint16))
    for path in (text, array):
        trace = read_trace(str(path))
        assert (trace.encoded_lens.tolist(), trace.windows, trace.ranks) == (LENS, None, None)


@pytest.mark.parametrize("text", ["700\n20\n4096\n1", '{"length": 700}\n20\n4096\n1', "length\n700\n20\n4096\n1"])
@pytest.mark.parametrize("end", ["\n\n", "\n \n\n", "\r\n\r\n"])
def test_blank_lines_at_the_end_are_no_segments(tmp_path, text, end):
    path = tmp_path / "lens.txt"
    path.write_bytes((text + end).encode())
    assert read_trace(str(path)).encoded_lens.tolist() == LENS


def test_columns_of_other_names_are_chosen_by_name(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,tokens\n8,5\n9,6\n")
    trace = read_trace(str(path), column="tokens", window_column="step")
    assert (trace.encoded_lens.tolist(), trace.windows.tolist()) == ([5, 6], [8, 9])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no segments; give one number"),
        ("\n\n", "holds no segments; give one number"),
        ("\n5\n", "line 1: the line is empty"),
        ("5\n\n7\n", "line 2: the line is empty; give one number"),
        ("5\nx\n", "line 2: 'x' is not JSON; give one number"),
        ("5\n-3\n", "line 2: the length is -3; a segment has at least 1 token"),
        ("5\n2.5\n", "line 2: length is 2.5; give a whole number"),
        ("5\ntrue\n", "line 2: length is True; give a whole number"),
        (f"5\n{10**30}\n", "line 2: length is 1000000000000000000000000000000; give"),
        ("[5, 7]\n", "line 1: starts a JSON list"),
        ('{"length": 5}\n{"len": 5}\n', "line 2: has no column 'length'; it has len. Name the column"),
        ('{"length": 5, "rank": 0}\n7\n', "line 2: lacks 'rank', and the lines before have it; give it in all lines"),
        ('7\n{"length": 5, "rank": 0}\n', "line 2: gives 'rank', and the lines before do not"),
        ("a,b\n1,2\n", "line 1: has no column 'length'; it has a, b. Name the column of the lengths with --column"),
        ("length,rank\n1,2\n\n3,4\n", "line 3: has 0 cells, and the header has 2"),
        ("length\trank\n1\t2\n\t\n", "line 3: length is ''; give a whole number"),
        ("length,rank\n1,2\n3\n", "line 3: has 1 cells, and the header has 2"),
        ("length,rank\n1,2\n,3\n", "line 3: length is ''; give a whole number"),
        ("length\n", "holds no segments"),
        ("length,text\n1,a\n2," + "a" * 200_000, "line 3: not CSV: field larger than field limit"),
        (",".join(f"c{i}" for i in range(20)), "it has c0, .*, c11 and 8 more"),
    ],
)
def test_a_bad_line_is_refused_by_its_number_and_value(tmp_path, text, says):
    path = tmp_path / "bad.txt"
    path.write_text(text)
    with pytest.raises(FileError, match=f"^{path}.*{says}"):
        read_trace(str(path))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("gone.jsonl", None, "cannot be read: No such file"),
        ("latin.csv", b"l\xe4nge\n", "not UTF-8 text"),
        ("text.npy", b"5\n", "not a .npy file of integers"),
        ("text.parquet", b"5\n", "not a parquet file"),
        ("floats.npy", np.array([1.5]), "the column of lengths holds float64; give whole numbers"),
        ("zero.npy", np.array([3, 0]), "index 1: the length is 0"),
        ("matrix.npy", np.ones((2, 2), dtype=int), r"has shape \(2, 2\)"),
        ("fields.npy", np.array([(1,)], dtype=[("len", int)]), "has no column 'length'; it has len"),
        ("fields.parquet", pyarrow.table({"len": [1]}), "has no column 'length'; it has len"),
        ("nulls.parquet", pyarrow.table({"length": [1, None, 3]}), "'length' has no value in 1 of 3 rows"),
    ],
)
def test_a_bad_file_is_refused_by_its_name(tmp_path, name, content, says):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    elif content is not None:
        pyarrow.parquet.write_table(content, path)
    with pytest.raises(FileError, match=f"^{path}.*{says}"):
        read_trace(str(path))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(FileError, match=r"needs pyarrow. Install it: pip install 'packsched\[cli\]'"):
        read_trace(write(tmp_path, "parquet"))


def test_segments_longer_than_a_pack_are_counted_and_the_first_is_named(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("length\n5\n900\n1200\n7\n")
    trace = read_trace(str(path))
    trace.check_fits(1200)
    with pytest.raises(FileError, match=r"line 3: the segment has 900 tokens and packing_length is 800\. 2 of 4 seg"):
        trace.check_fits(800)
    with pytest.raises(FileError, match="Raise --packing-length to 1200"):
        trace.check_fits(800)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_semicolons_and_tabs_separate_columns_too(tmp_path, delimiter):
    path = tmp_path / "log.csv"
    path.write_text(f"id{delimiter}length\na,b{delimiter}7\nc{delimiter}9\n")
    assert read_trace(str(path)).encoded_lens.tolist() == [7, 9]
