"""docs/replay.md shows what its commands print."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from examples.digits.tokenizer import build_digits_tokenizer
from packsched.candidates import packing_lengths_for
from packsched.commands import commands

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "replay.md").read_text()
SHOWN = re.findall(r"```console\n\$ packsched ([^\n]*)\n(.*?)```", PAGE, re.DOTALL)


def without_times(text):
    """Takes the last column, the time, from the rows of the table, and the line of planning times."""
    lines = [line.split() for line in text.splitlines() if not line.strip().startswith("planning")]
    return [line[:-1] if line[:1] in (["micro"], ["window"], ["global"]) else line for line in lines]


@pytest.mark.parametrize(("command", "shown"), SHOWN, ids=[command[:30] for command, _ in SHOWN])
def test_the_page_shows_what_the_command_prints(command, shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
    build_digits_tokenizer().save_pretrained("tokenizer")
    Path("data.jsonl").write_text('{"text": "4 8"}\n{"text": "0 4 8 12"}\n')
    done = CliRunner().invoke(commands, shlex.split(command))
    assert done.exit_code == 0, done.output
    printed = without_times(done.output)
    expected = without_times(shown)
    start = printed.index(expected[0])
    assert printed[start : start + len(expected)] == expected


def test_the_page_shows_all_three_commands():
    assert {command.split()[0] for command, _ in SHOWN} == {"replay", "advise", "lengths"}


def test_the_page_names_the_packing_lengths_that_advise_tries():
    text = " ".join(PAGE.split())
    trace, longest = (f"{a:,}, {b:,} and {c:,}" for a, b, c in map(packing_lengths_for, (4096, 6000)))
    assert f"here packs of {trace}." in text
    assert f"with `--longest 6000` it tries {longest}." in text
