"""No file, however hostile, gives a traceback of packsched's commands or a control character on the terminal."""

import io
import json
import sys
import unicodedata

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packsched.cli import app
from tests.fuzz.cases import cases
from tests.fuzz.values import SCALARS, WRITTEN

pytestmark = pytest.mark.fuzz

NAMES = ["length", "window", "rank", "a\nerror: b", "\x1b[31mred", "\x1b]0;title\x07", "\x9b2J", "\x7f", "\u202eab"]
NAMES += ["[bold]", ":smile:", "", " length ", "é", "\u2028", "\x00", "x" * 300]
NAME = st.sampled_from(NAMES) | st.text(st.characters(codec="utf-8"), max_size=8)
LENGTHS = st.lists(st.integers(1, 900), min_size=1, max_size=6)
OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")
DTYPES = ["<i8", ">i4", "u1", "u8", "f8", "m8[s]", "M8[D]", "m8", "?", "c8", "S3", "U3", "V2"]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command as a process does; returns its exit status and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["packsched", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:  # anything else would be a traceback
            app()
        printed = capsys.readouterr()
        text = printed.out + printed.err + (ended.value.code if isinstance(ended.value.code, str) else "")
        assert "Traceback" not in text
        assert {sign for sign in text if unicodedata.category(sign) in OBEYED} == {"\n"} & set(text)
        return 1 if isinstance(ended.value.code, str) else ended.value.code, text

    return run


@pytest.fixture
def replay(run, tmp_path):
    def replay(name, content, *options):
        (tmp_path / name).write_bytes(content)
        return run("replay", name, "--packing-length", 1000, "--micro-steps", 2, "--batch-size", 2, *options)

    return replay


@pytest.fixture
def count(run, tmp_path):
    tokenizer = ("--tokenizer", "examples.digits.tokenizer:build_digits_tokenizer")

    def count(name, content, *options):
        (tmp_path / name).write_bytes(content)
        return run("lengths", name, *tokenizer, *options)

    return count


def damaged(data, content):
    """The bytes with up to three of them changed, or the end cut off."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    return bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])


def saved(array):
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def parquet(table):
    out = io.BytesIO()
    pyarrow.parquet.write_table(table, out)
    return out.getvalue()


def test_the_files_that_are_damaged_below_are_good(replay, count):
    for name, content in {
        "a.npy": saved(np.array([3, 4])),
        "a.parquet": parquet(pyarrow.table({"length": [3, 4]})),
        "a.csv": b"length,rank\n3,0\n4,0\n",
        "a.jsonl": b'{"length": 3}\n{"length": 4}\n',
    }.items():
        assert replay(name, content)[0] == 0
    assert count("b.jsonl", b'{"text": "a"}\n')[0] == 0


@cases(600)
@given(data=st.data())
def test_npy_files(replay, data):
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = data.draw(st.lists(st.integers(0, 3), max_size=3))
    array = np.ones(shape, dtype=dtype)
    if data.draw(st.booleans()):
        names = data.draw(st.lists(NAME.filter(bool), min_size=1, max_size=3, unique=True))
        array = np.ones(3, dtype=[(name, dtype, data.draw(st.sampled_from([(), (2,)]))) for name in names])
    replay("t.npy", damaged(data, saved(array)))


@cases(400)
@given(shape=st.text("0123456789,()- Le+.", max_size=20), descr=st.sampled_from([*DTYPES, "O", "x", "", "<i999"]))
def test_npy_headers(replay, shape, descr):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    replay("t.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(16))


@cases(400)
@given(data=st.data())
def test_parquet_files(replay, data):
    kinds = [pyarrow.int64(), pyarrow.uint64(), pyarrow.duration("s"), pyarrow.string(), pyarrow.list_(pyarrow.int32())]
    columns = data.draw(st.lists(st.tuples(NAME, st.sampled_from(kinds)), min_size=1, max_size=4))
    values = {"string": "a", "list<item: int32>": [1]}
    arrays = [
        pyarrow.array([values.get(str(kind), 1), None][: data.draw(st.integers(0, 2))], kind) for _, kind in columns
    ]
    rows = min(map(len, arrays))
    table = pyarrow.Table.from_arrays([array[:rows] for array in arrays], names=[name for name, _ in columns])
    replay("t.parquet", damaged(data, parquet(table)), "--json")


@cases(600)
@given(
    header=st.lists(NAME | st.just("length"), max_size=4),
    rows=st.lists(st.lists(SCALARS.map(str) | st.just("3"), max_size=4), max_size=4),
    delimiter=st.sampled_from(",;\t|"),
)
def test_csv_files(replay, header, rows, delimiter):
    text = "\n".join(delimiter.join(row) for row in [header, *rows])
    replay("t.csv", text.encode("utf-8", "surrogatepass"))


@cases(600)
@given(
    keys=st.lists(NAME.map(json.dumps) | st.just('"length"'), max_size=4),
    values=st.lists(st.sampled_from(WRITTEN) | SCALARS.map(json.dumps), min_size=1, max_size=4),
)
def test_json_lines_of_lengths_and_of_records(replay, count, keys, values):
    pairs = ", ".join(f"{key}: {value}" for key, value in zip(keys, values, strict=False))
    lines = f"{values[0]}\n{{{pairs}}}\n".encode("utf-8", "surrogatepass")
    replay("t.jsonl", lines)
    replay("t.jsonl", lines.splitlines(keepends=True)[-1])
    count("t.jsonl", lines.splitlines(keepends=True)[-1].replace(b"length", b"text"))


@cases(200)
@given(name=st.sampled_from(["t.npy", "t.parquet", "t.csv", "t.jsonl"]), content=st.binary(max_size=200))
def test_any_bytes(replay, count, name, content):
    replay(name, content)
    if name == "t.jsonl":
        count(name, content)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.json", b'[{"text": "\x1b[31m", "text": 1}]'),
        ("t.json", b'{"\\u001b[31m": "a"}'),
        ("t.csv", b'"\x1b[31mred","a\nb"\n1,2\n'),
        ("t.csv", b"text,text\n1,2\n"),
        ("t.parquet", parquet(pyarrow.Table.from_arrays([pyarrow.array([1])] * 2, names=["\x1b[31m", "\x1b[31m"]))),
        ("t.parquet", b"PAR1"),
    ],
)
def test_files_that_datasets_reads(count, name, content):
    assert count(name, content)[0] == 2


OPTIONS = st.sampled_from(
    [
        *(
            "--seed",
            "--ranks",
            "--batch-size",
            "--packing-buffer",
            "--simulated-windows",
            "--column",
            "--window-column",
        ),
        *("--plot", "--packing-length", "--micro-steps", "--fill", "--infeasible", "--longest", "--out", "--split"),
    ]
)


@cases(300)
@given(
    command=st.sampled_from(["replay", "advise", "lengths"]),
    option=OPTIONS,
    value=st.sampled_from(
        [
            *(
                "-1",
                "0",
                "nan",
                "inf",
                "1e999",
                "9" * 30,
                "x",
                "/",
                "a.png/b.png",
                "~none/a.png",
                "\udce9.png",
                "/root/a.svg",
            )
        ]
    )
    | NAME,
)
def test_options(run, tmp_path, command, option, value):
    (tmp_path / "t.jsonl").write_text('{"length": 3, "text": "a"}\n' * 4)
    basic = {
        "replay": ["--packing-length", 9, "--micro-steps", 2, "--batch-size", 2],
        "advise": ["--packing-length", 9, "--micro-steps", 1, "--infeasible", 0.5],
        "lengths": ["--tokenizer", "examples.digits.tokenizer:build_digits_tokenizer"],
    }[command]
    run(command, "t.jsonl", *basic, option, value)


@pytest.mark.parametrize("name", [*NAMES, "\udcff.jsonl", "~nobody-of-this-name/a.jsonl", "a" * 300, "."])
def test_names_of_files(run, name):
    run("replay", name, "--packing-length", 9, "--micro-steps", 2)
    run("lengths", f"{name}.jsonl", "--tokenizer", "examples.digits.tokenizer:build_digits_tokenizer")
