"""What stage 2 learns from: references alone (the control), and rollouts with either supervision of their prefix.

    OMP_NUM_THREADS=1 python -m benchmarks.supervision

For each seed stage 1 of the quickstart is trained once; every cell starts from its weights. Cells that are in the
results already are not trained again, so the command may be stopped and called again; the most important come first.
Writes `benchmarks/results/supervision.json` and `supervision.md`. The cells with vLLM need its environment:
`.venv-vllm/bin/python -m benchmarks.supervision --vllm`. Two hours on one core.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.supervision.cells import ROOT, Cell, start, train
from benchmarks.supervision.report import report

RESULTS = ROOT / "benchmarks" / "results"


def cells(seeds: list[int], *, vllm: bool) -> list[Cell]:
    """All cells, the most important first; the control is trained behind `expert`, whose steps it is evaluated at."""
    full, short, ninety = (60, 120, 180), (60,), (45, 90)
    if vllm:
        rows = ["expert, rollouts by vLLM", "requirement, rollouts by vLLM"]
        return [Cell("constant", row, seed, full) for row in rows for seed in seeds]
    plan = [
        ("constant", ["expert", "references only"], full),
        ("constant", ["requirement"], full),
        ("decayed", ["expert", "references only"], short),
        ("labelled", ["expert", "references only"], ninety),
        ("constant", ["expert, half references"], full),
        ("labelled", ["requirement"], ninety),
        ("decayed", ["requirement"], short),
        ("constant", ["requirement, half references"], full),
        ("decayed", ["expert, half references"], short),
        ("labelled", ["expert, half references"], ninety),
    ]
    return [Cell(table, row, seed, marks) for table, rows, marks in plan for seed in seeds for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--vllm", action="store_true", help="the rows whose rollouts come from colocated vLLM")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "supervision")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    path = args.results / "supervision.json"
    found = json.loads(path.read_text()) if path.is_file() else {"starts": {}, "cells": {}, "machine": machine()}
    for cell in cells(args.seeds, vllm=args.vllm):
        if str(cell.seed) not in found["starts"]:
            found["starts"][str(cell.seed)] = start(cell.seed, args.folder)
        if cell.key not in found["cells"]:
            model = found["cells"].get(f"{cell.table} / expert / {cell.seed}", [])
            steps = [e["step"] for e in model] if cell.row == "references only" else []
            found["cells"][cell.key] = train(cell, args.folder, steps)
            print(cell.key, [round(e["f1"], 3) for e in found["cells"][cell.key]], flush=True)
            path.write_text(json.dumps(found, indent=1) + "\n")
            (args.results / "supervision.md").write_text(report(found))


def machine() -> str:
    """What ran it, in a line."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return f"{platform.machine()}, {torch.get_num_threads()} thread; Python {platform.python_version()}, {versions}"


if __name__ == "__main__":
    main()
