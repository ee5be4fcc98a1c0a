"""`rollout_sft` and TRL's `SFTTrainer` on the same model, tokens, optimizer steps and machine.

    make bench-peers                                           on a CPU
    make bench-peers PRESET=gpu GPU_PYTHON=/path/to/python     Qwen3 of 0.6B and 1.7B in bfloat16
    python -m benchmarks.peers --preset gpu --device cpu --dry-run     what the GPU will run, on a tiny shape

A cell is one row, one workload, one vocabulary and one round. Each runs in a process of its own and is written down
when it is done, so an interrupted run continues where it stopped. Every round draws a window of its own and runs all
rows on it in turn; a ratio is the median of the ratios within a round. Each row's gradient is compared with that of
the window's segments one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
import trl

from benchmarks.peers import report
from benchmarks.peers.child import PeakMemory, in_child
from benchmarks.peers.rows import row_names, train
from benchmarks.peers.workloads import Workload, make_model, window_of, workloads
from benchmarks.step_time.__main__ import cpu_name, reference_gradient

ROOT = Path(__file__).parents[2]
CPU_VOCABULARIES, GPU_VOCABULARY = (4800, 32000), 151936


@dataclass(frozen=True, kw_only=True)
class Group:
    """One window that every row trains in turn."""

    workload: Workload
    shape: str
    vocabulary: int
    round: int
    dtype: torch.dtype
    device: str

    def key(self, row: str) -> str:
        return f"{self.shape} | {self.vocabulary} | {self.workload.name} | round {self.round} | {row}"

    def about(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "vocabulary": self.vocabulary,
            "workload": self.workload.name,
            "round": self.round,
            "batch": f"{self.workload.gradient_accumulation_steps} x {self.workload.batch_size}",
            "packing_length": self.workload.packing_length,
            "supervised": self.workload.supervised,
        }


def measure(group: Group, row: str, reference: Path, steps: int) -> dict[str, Any]:
    """Runs one cell; the first step warms up."""
    peak = PeakMemory(group.device == "cuda")
    model = make_model(group.shape, group.vocabulary, group.dtype, torch.device(group.device))
    window = window_of(group.workload, group.vocabulary, group.round)
    watch, forwards = train(row, group.workload, window, model, steps=steps)
    rise = peak.rise()
    expected = torch.load(reference, mmap=True).to(model.device)
    work, wall = watch.seconds()
    return {
        "seconds": work,
        "wall_seconds": wall,
        "tokens": sum(segment.encoded_len for segment in window.segments),
        "forwards": forwards,
        "peak_bytes": rise,
        "gradient": float((watch.gradient.float() - expected).norm() / expected.norm()),
    }


def save_reference(group: Group, path: Path) -> dict[str, Any]:
    model = make_model(group.shape, group.vocabulary, group.dtype, torch.device(group.device))
    window = window_of(group.workload, group.vocabulary, group.round)
    torch.save(reference_gradient(model, window.segments).cpu(), path)
    return {}


def groups(args: argparse.Namespace) -> Iterator[Group]:
    """Yields the windows, the rounds outermost: after one round every table has a first number."""
    gpu = args.preset == "gpu"
    scale = 64 if args.dry_run else 1 if gpu else 16
    shapes = [("tiny", 512)] if args.dry_run else [("cpu", n) for n in CPU_VOCABULARIES]
    if gpu and not args.dry_run:
        shapes = [("0.6b", GPU_VOCABULARY), ("1.7b", GPU_VOCABULARY)]
    for number in range(args.rounds):
        for shape, vocabulary in shapes:
            for workload in workloads(scale):
                if args.dry_run:
                    workload = replace(workload, gradient_accumulation_steps=4, batch_size=2)
                if args.only in workload.name and args.vocabulary in (None, vocabulary):
                    yield Group(
                        workload=workload,
                        shape=shape,
                        vocabulary=vocabulary,
                        round=number,
                        dtype=torch.bfloat16 if gpu else torch.float32,
                        device=args.device,
                    )


def run_missing(group: Group, cells: dict[str, Any], path: Path, steps: int) -> None:
    """Measures the rows of the window that `cells` lacks, and appends each to the file when it is done."""
    missing = [row for row in row_names(group.device) if group.key(row) not in cells]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / "reference.pt"
        failed = in_child(lambda: save_reference(group, reference)).get("failed")
        if failed:
            raise SystemExit(f"the reference gradient of {group.key('')} could not be computed: {failed}")
        for row in missing:
            key = group.key(row)
            measured = in_child(lambda row=row: measure(group, row, reference, steps))  # type: ignore[misc]
            cells[key] = {**group.about(), "row": row, **measured}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({key: cells[key]}) + "\n")
            print(key, measured, flush=True)


def read_cells(path: Path, about: dict[str, str]) -> dict[str, Any]:
    """Returns what an earlier run measured on the same machine with the same versions."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(about) + "\n", encoding="utf-8")
    lines = path.read_text(encoding="utf-8").splitlines()
    if json.loads(lines[0]) != about:
        raise SystemExit(f"{path} was measured under {lines[0]}, and this is {json.dumps(about)}. Move it away first.")
    cells: dict[str, Any] = {}
    for line in lines[1:]:
        cells |= json.loads(line)
    return cells


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", choices=["cpu", "gpu"], required=True, help="models, lengths and precision")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="where it runs; as the preset says when not given")
    parser.add_argument("--dry-run", action="store_true", help="a tiny model and short windows: shows that it runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps of a cell; the first warms up")
    parser.add_argument("--only", default="", help="part of a workload's name")
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--out", help="folder of the results")
    args = parser.parse_args(argv)
    args.device = args.device or ("cuda" if args.preset == "gpu" else "cpu")
    usual = not args.dry_run and args.device == ("cuda" if args.preset == "gpu" else "cpu")
    name = f"peers_{args.preset}" + ("" if usual else f"_on_{args.device}") + ("_dry_run" if args.dry_run else "")
    about = {
        "machine": in_child(lambda: {"name": machine(args.device)})["name"],
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, accelerate {accelerate.__version__}, TRL {trl.__version__}",
        "steps": f"{args.steps} per cell, the first of which warms up",
    }
    path = Path(args.out) / f"{name}.cells.jsonl" if args.out else ROOT / "runs" / f"{name}.cells.jsonl"
    cells = read_cells(path, about)
    for group in groups(args):
        run_missing(group, cells, path, args.steps)
    folder = Path(args.out) if args.out else ROOT / ("benchmarks/results" if usual else "runs")
    report.write(about, list(cells.values()), folder / name, args.preset, dry_run=args.dry_run)
    report.draw(
        about, list(cells.values()), (ROOT / "docs" / "images" if usual and not args.out else folder) / f"{name}.png"
    )


def machine(device: str) -> str:
    if device == "cuda":
        return str(torch.cuda.get_device_name())
    return f"{cpu_name()}, {torch.get_num_threads()} of {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
