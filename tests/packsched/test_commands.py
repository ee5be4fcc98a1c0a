"""The commands print what packsched's own calls give, explain it within 100 columns, and name what is wrong."""

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from matplotlib.figure import Figure
from typer.testing import CliRunner

from packsched import advise, plan_window, plots
from packsched.commands import commands
from packsched.replay import replay
from packsched.report import Report
from packsched.steps import cut_steps
from packsched.terminal import print_json
from rollout_sft.config.run import load_run

CAP, GA = 1000, 4


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words, code=0):
        done = CliRunner().invoke(commands, [str(word) for word in words])
        assert done.exit_code == code, done.output
        return done

    return run


@pytest.fixture
def trace(tmp_path):
    """Writes lengths as a trace; returns its name in the working directory."""

    def trace(lens, name="trace.jsonl"):
        (tmp_path / name).write_text("".join(f"{length}\n" for length in lens))
        return name

    return trace


BASIC = ["--packing-length", CAP, "--micro-steps", GA, "--batch-size", 4]


def lengths(n=300, seed=0, mean=200):
    rng = np.random.default_rng(seed)
    return np.clip(rng.lognormal(np.log(mean) - 0.32, 0.8, n), 1, CAP).astype(int).tolist()


def test_replay_prints_the_numbers_of_plan_window_within_100_columns(run, trace):
    lens = lengths(n=160, mean=150)
    done = run("replay", trace(lens), *BASIC)
    plans = [plan_window(lens[at : at + 16], CAP, GA) for at in range(0, 160, 16)]
    used = sum(plan.non_empty for plan in plans) / len(plans)
    in_used = sum(lens) / (CAP * sum(plan.non_empty for plan in plans))
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("window dense")]
    assert row.split()[2:8] == [
        "4.0",
        f"{used:.1f}",
        f"{used:.1f}",
        f"{sum(lens) / 40 / CAP:.3f}",
        f"{in_used:.3f}",
        row.split()[7],
    ]
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "160 segments of" in done.stdout
    assert "10 windows of 4 x 4; packing length 1,000" in done.stdout
    for word in ("packs", "used", "bound", "fill", "in used", "longest", "infeasible", "wait", "ms"):
        assert any(line.strip().startswith(f"{word} ") for line in done.stdout.splitlines()), word
    saved = f"{used:.1f} forwards per window instead of 4.0"
    assert saved in done.stdout
    assert done.stderr == ""


def test_replay_as_json_gives_what_the_python_call_gives(run, trace):
    lens = lengths(seed=1)
    done = run("replay", trace(lens), *BASIC, "--json")
    printed = json.loads(done.stdout)
    rows = replay(cut_steps(lens, micro_steps=GA, batch_size=4), CAP)
    assert [(row["scope"], row["rule"]) for row in printed["rows"]] == [(row.scope, row.rule) for row in rows]
    for row, expected in zip(printed["rows"], rows, strict=True):
        assert row["fill"] == expected.fill.as_dict()
        assert row["means"] == expected.fill.metrics()
        assert (row["infeasible"], row["waited"]) == (expected.infeasible, expected.waited)
        assert row["fills"] == expected.fills
    assert (printed["segments"], printed["windows"], printed["batch_size"]) == (300, 19, 4)


def test_replay_without_a_batch_size_takes_the_advised_one(run, trace):
    lens = lengths(n=600, seed=2, mean=60)
    done = run("replay", trace(lens), "--packing-length", CAP, "--micro-steps", GA, "--json")
    assert json.loads(done.stdout)["batch_size"] == advise(lens, CAP, GA).batch_size > 1


def test_replay_of_ranks_shows_scope_global_within_100_columns_and_simulates_more(run, tmp_path):
    lens = [*lengths(n=320, seed=3, mean=100), *lengths(n=320, seed=4, mean=230)]
    records = [{"tokens": length, "step": at % 320 // 16, "rank": at // 320} for at, length in enumerate(lens)]
    (tmp_path / "ranks.jsonl").write_text("\n".join(map(json.dumps, records)))
    arguments = ["ranks.jsonl", "--packing-length", CAP, "--micro-steps", GA, "--column", "tokens"]
    arguments += ["--window-column", "step", "--ranks", 8, "--simulated-windows", 3]
    done = run("replay", *arguments)
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "20 windows on 2 ranks" in done.stdout
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("global dense")]
    assert row.split()[-1].endswith("%")
    assert "3 windows of 8 ranks with 16 segments each" in done.stdout
    text = " ".join(done.stdout.split())
    assert "Scope global places them all." in text
    printed = json.loads(run("replay", *arguments, "--json").stdout)
    assert printed["ranks"] == 2
    assert len(printed["simulated"]["misfits"]) == 3
    (alone,) = [r for r in printed["rows"] if (r["scope"], r["rule"]) == ("window", "dense")]
    assert f"cannot place {alone['infeasible']} of 20 windows" in text


def test_replay_says_where_scope_micro_stops_and_what_window_cannot_place(run, trace):
    done = run(
        "replay",
        trace([600] * 80),
        "--packing-length",
        CAP,
        "--micro-steps",
        GA,
        "--batch-size",
        2,
        "--packing-buffer",
        9,
    )
    text = " ".join(done.stdout.split())
    assert "Scope window cannot place 10 of 10 windows" in text
    assert "Scope micro stops in window 3 of 10 (fifo): its carry buffer of 9 segments is full" in text
    assert "packsched advise trace.jsonl --packing-length 1000" in text


def test_replay_says_when_scope_window_saves_nothing_and_what_micro_trains_late(run, trace):
    lens = [700, 500, 300, 500] * 20
    words = ["replay", trace(lens), "--packing-length", CAP, "--micro-steps", 2, "--batch-size", 2]
    done = run(*words, "--json")
    micro = json.loads(done.stdout)["rows"][:3]
    assert max(row["late"] for row in micro) > 0
    text = " ".join(run(*words).stdout.split())
    assert "Scope window saves no forwards here" in text
    assert f"up to {max(row['late'] for row in micro) / 80:.1%} of the segments in a later window" in text


@pytest.mark.parametrize("name", ["plot.png", "plot.html"])
def test_replay_draws_its_fill_packs_and_lengths(run, trace, tmp_path, name):
    lens = lengths(seed=5, mean=230)
    done = run("replay", trace(lens), *BASIC, "--plot", name)
    assert "What to do" in done.stdout
    content = (tmp_path / name).read_bytes()
    if name.endswith(".png"):
        assert content.startswith(b"\x89PNG")
        return
    page = content.decode()
    assert page.count("<svg") == 3
    legend = ">window, dense</text>"
    for text in (legend, "scope window, balanced", "Fill of the used packs", "tokens of a segment", "<td>dense</td>"):
        assert text in page, text
    assert not re.search(r"<script|src=|<link|href=.http", page), "the page needs nothing from elsewhere"
    run("replay", "trace.jsonl", *BASIC, "--plot", "again.html")
    again = (tmp_path / "again.html").read_text()
    assert page[page.index("<figure>") :] == again[again.index("<figure>") :], "the same replay draws the same"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["replay", "trace.jsonl", *BASIC, "--plot", "plot.docx"], "plot.docx: the name must end in .png, .svg, .pdf,"),
        (["replay", "trace.jsonl", *BASIC, "--plot", "no/p.png"], "no/p.png: there is no folder no."),
        (
            ["replay", "trace.jsonl", *BASIC, "--plot", "p.png", "--plot", "no/p.png"],
            "no/p.png: there is no folder no.",
        ),
        (["lengths", "d.jsonl", "--tokenizer", "t", "--out", "no/l.jsonl"], "no/l.jsonl: there is no folder no."),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_any_work(run, trace, words, message):
    trace([CAP + 1])  # replaying it would be an error of its own
    printed = " ".join(run(*words, code=2).output.replace("│", " ").split())
    assert message in printed


def test_lines_that_coincide_are_both_seen(run, trace, tmp_path):
    run("replay", trace([200] * 200), *BASIC, "--plot", "plot.html")
    page = (tmp_path / "plot.html").read_text()
    fill = page[page.index("<svg") : page.index("</svg>")]
    assert fill.index("#e69f00") < fill.index("stroke-dasharray"), "the dashes of micro lie on balanced's line"


def test_the_line_of_the_fill_is_broken_where_windows_do_not_fit(tmp_path):
    lens = [CAP // 2] * GA + [CAP] * (GA + 1) + [CAP // 2] * 2 * GA  # the second of four windows is a pack too long
    sizes = [GA, GA + 1, GA, GA]
    steps = cut_steps(lens, micro_steps=GA, windows=np.repeat(range(4), sizes))
    rows = replay(steps, CAP)
    report = Report(
        trace="t", packing_length=CAP, micro_steps=GA, batch_size=None, packing_buffer=512, steps=steps, rows=rows
    )
    figure = Figure()
    plots._draw_fill(figure, report)
    dense = next(line for line in figure.axes[0].lines if line.get_label() == "window, dense")
    assert [None if np.isnan(x) else int(x) for x in dense.get_xdata()] == [0, None, 2, 3]
    assert dense.get_marker() == "o", "a window alone between two gaps has no line, so it needs a mark"


def test_the_advice_names_the_column_that_replay_read(run, tmp_path):
    (tmp_path / "t.csv").write_text("n tokens,step\n" + f"{CAP},0\n" * (GA + 1))
    sizes = ("--packing-length", CAP, "--micro-steps", GA)
    done = run("replay", "t.csv", *sizes, "--column", "n tokens", "--window-column", "step")
    assert f"packsched advise t.csv --column 'n tokens' --packing-length {CAP}" in " ".join(done.stdout.split())


def test_replay_draws_every_plot_and_says_where(run, trace, tmp_path):
    done = run("replay", trace(lengths()), *BASIC, "--plot", "plot.html", "--plot", "plot.svg")
    assert done.stderr.splitlines() == ["written: plot.html", "written: plot.svg"]
    assert (tmp_path / "plot.html").read_text().startswith("<!doctype html>")
    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_no_label_of_a_long_tailed_trace_covers_another_or_a_line():
    lens = [*range(20, 100)] * 5 + [40_000]
    steps = cut_steps(lens, micro_steps=GA, batch_size=4)
    rows = replay(steps, 65_536)
    report = Report(
        trace="t", packing_length=65_536, micro_steps=GA, batch_size=4, packing_buffer=512, steps=steps, rows=rows
    )
    figure = Figure(figsize=(11, 10.5), layout="constrained")
    fill, sizes = figure.subfigures(2, 1)
    plots._draw_fill(fill, report)
    plots._draw_lengths(sizes, report)
    figure.canvas.draw()
    median, tail = sizes.axes[0].texts
    assert (median.get_text(), tail.get_text()) == ("median 60", "90 % 92")
    assert not median.get_window_extent().overlaps(tail.get_window_extent())
    (legend,) = fill.legends
    assert not legend.get_window_extent().overlaps(fill.axes[0].get_window_extent())
    assert all(tick == int(tick) for tick in fill.axes[0].get_xticks())


def test_one_of_a_kind_is_in_the_singular(run, trace):
    words = ["--packing-length", CAP, "--micro-steps", 1, "--batch-size", 1, "--ranks", 2, "--simulated-windows", 1]
    text = " ".join(run("replay", trace([1]), *words).stdout.split())
    assert "1 segment of 1 to 1 token (mean 1); 1 window of 1 x 1;" in text
    assert "drawn 1 window of 2 ranks with 1 segment each" in text
    assert "0 of 1 window has a rank whose segments do not fit" in text
    words = ["advise", "trace.jsonl", "--packing-length", 64, "--micro-steps", 1, "--infeasible", 0.2]
    assert "too short for advice: it has 1 segment. The" in " ".join(run(*words).stdout.split())
    assert "95 of 100 traces of 1 segment, if" in " ".join(run(*words, "--longest", 1).stdout.split())
    small = ["--packing-length", CAP, "--micro-steps", 1, "--batch-size", 2]
    assert "cannot place 1 of 1 window, and a run" in " ".join(run("replay", trace([600] * 2), *small).stdout.split())
    text = " ".join(run("replay", trace([300, 1000, 300]), *small).stdout.split())
    assert "and up to 1 segment waits at the end" in text


def test_a_trace_that_no_window_fits_is_drawn_without_plans(run, trace, tmp_path):
    run(
        "replay",
        trace([600] * 400),
        "--packing-length",
        CAP,
        "--micro-steps",
        1,
        "--batch-size",
        2,
        "--plot",
        "p.html",
        "--ranks",
        2,
    )
    page = (tmp_path / "p.html").read_text()
    assert page.count("no window can be planned") == 2
    assert "Scope global on 2 ranks, simulated" in page


def test_advise_recommends_the_shortest_packs_that_reach_the_fill(run, trace):
    lens = np.random.default_rng(0).normal(60, 5, 2000).astype(int).tolist()
    words = ["advise", trace(lens), "--packing-length", 150, "--packing-length", 1024, "--packing-length", 2048]
    words += ["--micro-steps", 16, "--fill", 0.8, "--infeasible", 0.05, "--longest", 128]
    printed = json.loads(run(*words, "--json").stdout)
    for one in printed["candidates"]:
        cap = one["packing_length"]
        expected = advise(lens, cap, 16, target=0.8, infeasible=0.05, longest=128)
        assert (one["batch_size"], one["fill"]) == (expected.batch_size, expected.fill)
        assert one["reaches"] == (abs(expected.fill - 0.8) * cap <= sum(lens) / len(lens) / 2)
    assert [one["reaches"] for one in printed["candidates"]] == [False, True, True]
    chosen = printed["recommended"]
    assert chosen["packing_length"] == 1024
    done = run(*words)
    text = " ".join(done.stdout.split())
    assert f"The packs are {chosen['fill']:.0%} full on average, and less than 1 in 20 windows of a rank" in text
    assert "0.15% of the segments as 128 tokens long" in text
    assert printed["yaml"] in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_advise_says_when_no_candidate_reaches_the_fill(run, trace):
    done = run("advise", trace([400] * 30 + [60] * 30), "--micro-steps", 4, "--infeasible", 0.05)
    text = " ".join(done.stdout.split())
    assert "None reaches a fill of 0.9 with less than 1 in 20 windows infeasible; -> comes closest." in text
    assert "5.00% of the segments as a pack long" in text
    fills = [float(line.split()[-1]) for line in done.stdout.splitlines() if re.search(r"\d\.\d{3}$", line.rstrip())]
    (marked,) = [line for line in done.stdout.splitlines() if "->" in line and "None" not in line]
    assert float(marked.split()[-1]) == max(fills)


def test_a_trace_that_is_too_short_for_advice_says_how_many_segments_it_takes(run, trace):
    words = ["advise", trace([60] * 6), "--packing-length", 1024, "--micro-steps", 8]
    text = " ".join(run(*words).stdout.split())
    enough = json.loads(run(*words, "--json").stdout)["enough_segments"]
    assert "This trace is too short for advice: it has 6 segments." in text
    assert f"Give at least {enough:,} segments, or --longest" in text
    assert "To paste" not in text
    alone = advise([60] * 6, 1024, 8, promise=False).batch_size
    assert advise([60] * enough, 1024, 8).batch_size * 2 >= alone > advise([60] * (enough // 2), 1024, 8).batch_size * 2
    assert "To paste" in run(*words, "--longest", 64).stdout
    words[1] = trace([60] * enough)
    assert json.loads(run(*words, "--json").stdout)["enough_segments"] is None


def test_the_yaml_of_advise_is_a_valid_configuration(run, trace, tmp_path):
    text = json.loads(run("advise", trace(lengths(seed=6)), "--micro-steps", 4, "--json").stdout)["yaml"]
    base = {
        "model": {
            "config": {"model_type": "qwen3"},
            "tokenizer_name_or_path": "examples.digits.tokenizer:build_digits_tokenizer",
        },
        "data": {"train": {"source": "examples.digits.data:load_digits"}},
        "training": {"output_dir": str(tmp_path / "out"), "use_cpu": True, "report_to": "none"},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    (tmp_path / "advised.yaml").write_text("extends: base.yaml\n" + text)
    (stage,) = load_run(tmp_path / "advised.yaml")
    assert stage.training.packing_length in (1024, 2048, 4096)
    assert stage.training.gradient_accumulation_steps == 4
    assert stage.training.post_rollout_pack_scope == "window"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["replay", "gone.csv", "--packing-length", 5, "--micro-steps", 1], "gone.csv: cannot be read"),
        (["replay", "trace.jsonl", "--packing-length", 50, "--micro-steps", 1], "line 1: the segment has 60 tokens"),
        (["advise", "trace.jsonl", "--packing-length", 50], "line 1: the segment has 60 tokens"),
        (["advise", "trace.jsonl", "--fill", 90], "target is 90.0; it is a share"),
        (["lengths", "trace.jsonl", "--tokenizer", "empty"], "--tokenizer empty: "),
    ],
)
def test_errors_end_with_the_message_alone(run, trace, tmp_path, words, says):
    (tmp_path / "empty").mkdir()
    trace([60, 20])
    done = run(*words, code=2)
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_batch_size_for_a_trace_with_windows_is_refused(run, tmp_path):
    (tmp_path / "t.csv").write_text("length,window\n5,0\n")
    done = run("replay", "t.csv", "--packing-length", 9, "--micro-steps", 1, "--batch-size", 3, code=2)
    assert "has windows in column 'window', so --batch-size 3 has no meaning" in done.stderr


@pytest.mark.parametrize("missing", ["typer", "matplotlib"])
def test_without_the_extra_the_command_says_what_to_install(missing, trace, tmp_path, monkeypatch):
    path = str(tmp_path / trace([60, 70]))
    monkeypatch.setattr(sys, "argv", ["packsched", "replay", path, *map(str, BASIC), "--plot", "plot.png"])
    monkeypatch.setitem(sys.modules, missing, None)
    for loaded in ("packsched.commands", "packsched.plots"):
        monkeypatch.delitem(sys.modules, loaded, raising=False)
    with pytest.raises(SystemExit) as ended:
        entry_point()()
    assert ended.value.code == (
        f"packsched's commands need {missing}, which is not installed. Install it: pip install 'packsched[cli]'"
    )


def test_a_broken_module_of_packsched_itself_is_no_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "packsched.report", None)
    monkeypatch.delitem(sys.modules, "packsched.commands")
    with pytest.raises(ModuleNotFoundError, match=r"packsched\.report"):
        entry_point()()


def test_the_entry_point_runs_the_command(trace, tmp_path, monkeypatch, capsys):
    arguments = ["advise", str(tmp_path / trace([60, 70])), "--micro-steps", "1", "--infeasible", "0.1", "--json"]
    monkeypatch.setattr(sys, "argv", ["packsched", *arguments])
    with pytest.raises(SystemExit) as ended:
        entry_point()()
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["candidates"][0]["packing_length"] == 1024


def test_a_reader_that_leaves_ends_the_command_quietly(trace, tmp_path, monkeypatch):
    arguments = ["advise", str(tmp_path / trace([60, 70])), "--micro-steps", "1", "--infeasible", "0.1", "--json"]
    monkeypatch.setattr(sys, "argv", ["packsched", *arguments])
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output:  # closing it writes what is left, as the end of a process does
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as ended:
            entry_point()()
        monkeypatch.undo()
    assert ended.value.code == 1


HOSTILE = "\x1b[31mred\x1b]0;title\x07"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", f"{HOSTILE},b\n1,2\n", r"it has \x1b[31mred\x1b]0;title\x07, b."),
        ("a.jsonl", json.dumps({HOSTILE: 1}) + "\n", r"it has \x1b[31mred\x1b]0;title\x07."),
        ("a.csv", "length,x,x\n1,2,3\n", "error: a.csv, line 1: the column 'x' is given twice; keep one."),
        (
            "a.jsonl",
            '{"length": 1, "length": 2}\n',
            "error: a.jsonl, line 1: the key 'length' is given twice; keep one.",
        ),
        ("a.csv", "length\n1\n\0\n", "error: a.csv, line "),
    ],
)
def test_hostile_and_double_names_are_named_and_escaped(run, tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    printed = run("replay", name, *BASIC, code=2).output
    assert says in printed
    assert printed.replace("\n", "").isprintable()


def test_arrays_that_are_no_trace_are_named(run, tmp_path):
    with (tmp_path / "several.npy").open("wb") as file:
        np.savez(file, a=[1], b=[2])
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999999,), }".ljust(117) + b"\n"
    (tmp_path / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))
    np.save(tmp_path / "times.npy", np.array([3, 4], dtype="m8[s]"))
    np.save(tmp_path / "large.npy", np.array([3, 2**63 + 5], dtype="u8"))
    np.save(tmp_path / "lists.npy", np.ones(2, dtype=[("length", "i8", (2,))]))
    double = pyarrow.Table.from_arrays([pyarrow.array([5])] * 2, names=["length", "length"])
    pyarrow.parquet.write_table(double, tmp_path / "double.parquet")
    for name, says in {
        "several.npy": "holds several arrays, as a .npz file does; give one",
        "huge.npy": "not a .npy file of integers: ",
        "times.npy": "the column of lengths holds timedelta64[s]; give whole numbers",
        "large.npy": "index 1: the length is 9223372036854775813; too large",
        "lists.npy": "the column of lengths holds int64 in lists; give whole numbers",
        "double.parquet": "the column 'length' is given twice; keep one",
    }.items():
        assert f"error: {name}" in (printed := run("replay", name, *BASIC, code=2).output), printed
        assert says in printed, printed


def test_a_negative_seed_is_refused(run, trace):
    for command in (["replay", *BASIC], ["advise"]):
        assert "--seed" in (printed := run(command[0], trace([1]), *command[1:], "--seed", -1, code=2).output)
        assert re.search(r"x>=0|greater than or equal to 0", printed)


@pytest.mark.parametrize("suffix", [".png", ".html"])
def test_a_plot_that_cannot_be_written_is_named_and_leaves_the_old_one(run, trace, tmp_path, monkeypatch, suffix):
    (tmp_path / f"folder{suffix}").mkdir()
    assert (
        "a folder; give a file's name" in run("replay", trace([1]), *BASIC, "--plot", f"folder{suffix}", code=2).output
    )
    too_long = "x" * 300 + suffix
    assert "File name too long" in run("replay", trace([1]), *BASIC, "--plot", too_long, code=2).output
    (tmp_path / f"old{suffix}").write_text("as it was")

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    printed = run("replay", trace([1]), *BASIC, "--plot", f"old{suffix}", code=2).output
    assert f"error: old{suffix}: cannot be written: No space left on device." in printed
    assert (tmp_path / f"old{suffix}").read_text() == "as it was"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_named(trace, tmp_path):
    """In a process of its own, whose last words Python writes itself."""
    path = str(tmp_path / trace([60, 70]))
    for arguments in (["replay", path, *map(str, BASIC)], ["replay", path, *map(str, BASIC), "--json"], ["--help"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "packsched", *arguments], stdout=full, stderr=subprocess.PIPE, text=True
            )
        assert done.stderr == "packsched: the output cannot be written: No space left on device.\n"
        assert done.returncode == 1


def test_an_argument_with_a_control_character_is_refused_before_anything_prints_it(monkeypatch):
    for argument in ("\x1b[31m.jsonl", "a\nb", "\u202egnp"):
        monkeypatch.setattr(sys, "argv", ["packsched", "replay", argument])
        with pytest.raises(SystemExit) as ended:
            entry_point()()
        assert ended.value.code == (
            f"packsched: the argument {argument!a} holds a control character; rename the file or column."
        )


def test_json_holds_no_raw_control_character(capsys):
    print_json({"a\x7f\x1b": "\x9b"})
    printed = capsys.readouterr().out
    assert printed.replace("\n", "").isprintable()
    assert json.loads(printed) == {"a\x7f\x1b": "\x9b"}


def test_names_from_a_trace_are_no_markup_and_no_control_characters(run, trace):
    name = trace(lengths(n=20), name="[red]:smile:\x1b[1m\n.jsonl")
    printed = run("replay", name, *BASIC).output
    assert printed.startswith("[red]:smile:\\x1b[1m\\n.jsonl\n")
    assert printed.replace("\n", "").isprintable()


def entry_point():
    """Returns what pyproject.toml says that the command `packsched` runs."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["packsched"].partition(":")
    return getattr(importlib.import_module(module), name)
