"""How the seconds of an optimizer step grow, beside the plain Trainer, and whether memory grows with the steps.

    OMP_NUM_THREADS=1 python -m benchmarks.step_time.growth

[`~benchmarks.step_time.axes`] names what grows. At each value every trainer takes the same window several times; a
number is the median over these steps. The model is tiny on purpose: the smaller it is, the larger the trainer's own
share. Memory is that of runs of 2,000 steps, each in a process of its own; see [`~benchmarks.step_time.memory`].
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.step_time import growth_report, memory
from benchmarks.step_time.axes import AXES, STEPS, Axis
from benchmarks.step_time.machine import VERSIONS, cpu_name
from benchmarks.step_time.timed import Timed

ROOT = Path(__file__).parents[2]


def measure(axis: Axis, values: Sequence[int]) -> dict[str, Any]:
    """Returns the seconds of each trainer at each value, and the exponents with which they grow."""
    seconds: dict[str, list[dict[str, float]]] = {}
    for value in values:
        for name, make in axis.trainers(value).items():
            trainer = make()
            timed = Timed(trainer)
            trainer.train()
            assert len(timed.steps) == STEPS, (name, value, len(timed.steps))
            seconds.setdefault(name, []).append(timed.medians())
            shutil.rmtree(trainer.args.output_dir)
            del trainer, timed
            gc.collect()
        shown = {name: {part: f"{s:.4f}" for part, s in rows[-1].items()} for name, rows in seconds.items()}
        print(axis.name, value, shown, flush=True)
    exponents = {
        name: {part: exponent(values, [row[part] for row in rows]) for part in ("step", "model", "own")}
        for name, rows in seconds.items()
    }
    return {
        "fixed": axis.fixed,
        "values": list(values),
        "seconds": seconds,
        "exponents": exponents,
    }


def exponent(values: Sequence[int], seconds: Sequence[float]) -> float:
    """
    Returns k of `seconds ~ values^k`: the slope of a line through the logarithms of the upper half of the values.

    At small values a part that does not grow hides the others.
    """
    upper = len(values) // 2
    return float(np.polyfit(np.log(values[upper:]), np.log(seconds[upper:]), 1)[0])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dry-run", action="store_true", help="few values and steps: shows that it runs")
    parser.add_argument("--only", help="part of an axis' name, or memory; the other results are kept")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps of the runs whose memory is measured")
    parser.add_argument("--out", help="folder of the results")
    args = parser.parse_args(argv)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    load = os.getloadavg()[0]
    tables = {
        axis.name: measure(axis, axis.values[:3] if args.dry_run else axis.values)
        for axis in AXES
        if not args.only or args.only in axis.name
    }
    steps = 40 if args.dry_run else args.steps
    runs = memory.measure(steps) if not args.only or args.only in "memory" else []
    folder = Path(args.out) if args.out else ROOT / ("runs" if args.dry_run else "benchmarks/results")
    path = folder / "step_growth.json"
    kept = json.loads(path.read_text()) if args.only and path.exists() else {"tables": {}, "memory": []}
    tables = kept["tables"] | tables
    results = {"tables": {axis.name: tables[axis.name] for axis in AXES if axis.name in tables}}
    results["memory"] = runs or kept["memory"]
    results["about"] = {
        "machine": f"{cpu_name()}, one thread",
        "versions": VERSIONS,
        "command": f"python -m benchmarks.step_time.growth{' --dry-run' * args.dry_run} --steps {steps}",
        "load average": f"{load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end",
    }
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    growth_report.write(results, path.with_suffix(".md"))
    if not args.out and not args.dry_run:
        growth_report.draw(results, ROOT / "docs" / "images" / "step_growth.png")


if __name__ == "__main__":
    main()
