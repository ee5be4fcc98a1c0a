"""`python -m benchmarks.packsched`: every goal with its measured value, then packsched beside the alternatives.

`--quick` takes a few cases of everything; `--write` stores the text and the plots under `docs/`. `--without STAGE`
measures what one stage of the planner earns instead, `--without each` what every one of them does.
"""

import argparse
import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path

from benchmarks.packsched import ablation, compare, goals

DOCS = Path(__file__).resolve().parents[2] / "docs"
PACKAGES = ("numpy", "binpacking", "ortools", "prtpy", "trl", "datasets")


def machine() -> str:
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ]
        model = names[0] if names else model
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} not installed")
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, " + ", ".join(versions)


def _measured_by(options: str) -> str:
    return (
        f"# What each stage earns\n\n`python -m benchmarks.packsched {options} --write`, one run on one machine: "
        f"{machine()}.\n\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packsched", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few cases of everything, about half a minute")
    parser.add_argument("--write", action="store_true", help="store docs/benchmarks/packsched.md and the plots")
    parser.add_argument("--without", metavar="STAGE", choices=("each", *ablation.NAMES), help="a stage, or each")
    options = parser.parse_args()
    if options.without:
        text = ablation.ablation(ablation.NAMES if options.without == "each" else [options.without], options.quick)
        if options.write:
            (DOCS / "benchmarks" / "ablation.md").write_text(_measured_by("--without each") + text + "\n")
        return 0
    start = time.monotonic()
    parts = [
        "# Measured",
        "One run on one machine: " + machine() + ". CPU milliseconds of the process (the machine was shared), "
        "medians of five calls after a warm-up, except: one call, without warm-up, for each of the many windows of "
        "the goals on windows, cut packs, slack 0 and `balanced`, and for CP-SAT; three calls of `binpacking` where a "
        "ratio to it is taken, and one at 4096 segments. Lengths from seeded generators "
        "(`benchmarks/packsched/workloads.py`).",
    ]

    def add(title: str, text: str) -> None:
        parts.extend([f"## {title}", text])
        print(f"\n{title}\n{text}", flush=True)

    text, met = goals.goals_table(options.quick)
    add("Goals", text)
    add("Ordinary windows, 97 % full", compare.ordinary_windows(options.quick))
    add("Windows that fit by construction: share placed", compare.tight_windows(options.quick))
    add("Level packs", compare.level_windows(options.quick))
    add("Verdicts beside CP-SAT (10 s a window)", compare.referee(options.quick))
    text, fills, times = compare.selection(options.quick)
    add("The next pack of a buffer: fill and time", text)
    text, by_segments, by_cap = compare.growth(options.quick)
    add("Growth of the cost", text)
    print(f"\n{'all goals met' if met else 'some goals are short'}; {time.monotonic() - start:.0f} s", file=sys.stderr)
    if options.write:
        target = DOCS / "benchmarks"
        target.mkdir(parents=True, exist_ok=True)
        (target / "packsched.md").write_text("\n\n".join(parts) + "\n")
        from benchmarks.packsched import plots

        plots.draw(target, fills, times, by_segments, by_cap)
    return 0


if __name__ == "__main__":
    sys.exit(main())
