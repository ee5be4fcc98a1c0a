"""The benchmark beside TRL: every row trains the same step, what is done is not done again, and what its tables say."""

import json

import pytest

pytest.importorskip("trl", reason="TRL is not installed; the extra dev has it")

from benchmarks.peers import __main__ as peers
from benchmarks.peers import report
from benchmarks.peers.child import PeakMemory, in_child
from benchmarks.peers.rows import COMPACT, DENSE, MICRO, PADDED, PADDING_FREE, row_names


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """The GPU's code path on a tiny shape: bfloat16, its workloads and its report."""
    folder = tmp_path_factory.mktemp("peers")
    arguments = ["--preset", "gpu", "--device", "cpu", "--dry-run", "--rounds", "1", "--only", "6092"]
    peers.main([*arguments, "--out", str(folder)])
    return folder, arguments


def cells_of(folder):
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())["cells"]


def test_every_row_trains_the_step_of_the_segments_one_by_one(dry_run):
    cells = cells_of(dry_run[0])
    assert [cell["row"] for cell in cells] == row_names("cpu")
    assert all(cell["gradient"] < report.SAME_WORK["gpu"] for cell in cells), cells
    assert all(cell["seconds"] > 0 and cell["peak_bytes"] > 0 for cell in cells)
    forwards = {cell["row"]: cell["forwards"] for cell in cells}
    assert forwards[DENSE] < forwards[PADDED] == forwards[MICRO] == 4


def test_what_is_measured_already_is_not_measured_again(dry_run, monkeypatch):
    folder, arguments = dry_run
    (path,) = folder.glob("*.jsonl")
    *kept, last = path.read_text().splitlines()
    path.write_text("\n".join(kept) + "\n")
    ran = []

    def measure(group, row, *rest):
        return {"tokens": 1, "seconds": 1.0, "wall_seconds": 1.0, "forwards": 1, "peak_bytes": 1, "gradient": 0.0}

    monkeypatch.setattr(peers, "measure", measure)
    monkeypatch.setattr(peers, "save_reference", lambda *_: {})
    monkeypatch.setattr(peers, "print", lambda key, *rest, **_: ran.append(key), raising=False)
    peers.main([*arguments, "--out", str(folder)])
    assert ran == list(json.loads(last))
    assert len(cells_of(folder)) == len(row_names("cpu"))


def test_numbers_of_another_machine_or_version_are_not_mixed(dry_run, tmp_path):
    (path,) = dry_run[0].glob("*.jsonl")
    about = json.loads(path.read_text().splitlines()[0])
    with pytest.raises(SystemExit, match="Move it away first"):
        peers.read_cells(path, about | {"machine": "another"})


def test_a_crash_costs_one_cell():
    assert in_child(lambda: {"a": 1}) == {"a": 1}
    assert in_child(lambda: 1 / 0) == {"failed": "ZeroDivisionError: division by zero"}
    assert in_child(lambda: __import__("os").kill(__import__("os").getpid(), 9)) == {
        "failed": "the process ended with -9"
    }


def test_the_peak_is_the_highest_level_and_not_the_last():
    def grow():
        peak = PeakMemory(cuda=False)
        held = bytearray(64 * 2**20)
        del held
        return {"rise": peak.rise()}

    assert 60 * 2**20 < in_child(grow)["rise"] < 90 * 2**20


def made(row, number, seconds, gradient=1e-7):
    about = {
        "shape": "cpu",
        "vocabulary": 10,
        "workload": "w",
        "batch": "8 x 8",
        "packing_length": 9,
        "supervised": 0.5,
    }
    numbers = {"seconds": seconds, "wall_seconds": 2 * seconds, "tokens": 100, "forwards": 8, "peak_bytes": 2**20}
    return {**about, "row": row, "round": number, **numbers, "gradient": gradient}


def test_a_ratio_is_the_median_of_the_ratios_within_a_round():
    times = {PADDED: (10.0, 30.0, 12.0), PADDING_FREE: (5.0, 5.0, 6.0), DENSE: (2.0, 10.0, 3.0)}
    cells = [made(row, i, s) for row, three in times.items() for i, s in enumerate(three)]
    assert report.ratio(DENSE, PADDED, cells) == 4.0
    assert report.ratio(DENSE, PADDING_FREE, cells) == 2.0
    assert report.ratio(COMPACT, PADDED, cells) is None
    assert f"| {DENSE} | 3.000 | 6.000 | 33 | 4.00 | 2.00 | 8 | 1 MiB | 1.0e-07 |" in report.table(cells, "cpu")


def test_a_row_says_when_it_trains_something_else_or_failed():
    other = report.row(PADDED, [made(PADDED, 0, 1.0, gradient=0.3)], "cpu")
    assert "other work (3.0e-01)" in other
    failed = {"row": DENSE, "failed": "OutOfMemoryError: 80 GiB"}
    assert "OutOfMemoryError: 80 GiB" in report.row(DENSE, [failed], "cpu")
