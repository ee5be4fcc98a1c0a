"""The tables of the results."""

from __future__ import annotations

from collections.abc import Collection
from statistics import mean
from typing import Any

Evaluation = dict[str, Any]
GOOD_START = 0.85
"""F1 that stage 1 should reach; seeds below it have a table of their own."""

TITLES = {
    "constant": "The rate held constant",
    "decayed": "The rate falls with the time, as a cosine to a twentieth",
    "labelled": "400 labelled canvases, again and again; constant rate",
}


def report(found: dict[str, Any]) -> str:
    """Markdown of everything that has been measured so far."""
    lines = ["# Stage 2 by what it learns from", "", f"`python -m benchmarks.supervision`; {found['machine']}.", ""]
    lines += ["F1 at IoU .5 with equal class, greedy, 256 canvases: mean of the seeds (lowest to highest).", ""]
    starts = {int(seed): evaluation for seed, evaluation in found["starts"].items()}
    good = {seed for seed, evaluation in starts.items() if evaluation["f1"] >= GOOD_START}
    for table, title in TITLES.items():
        if rows := rows_of(found, table, good):
            lines += [f"## {title}", "", *by_time(rows, starts), ""]
    lines += by_steps(rows_of(found, "constant", good), starts)
    if weak := rows_of(found, "constant", starts.keys() - good):
        lines += ["", f"## From a stage 1 that ended below F1 {GOOD_START}; constant rate", "", *by_time(weak, starts)]
    return "\n".join(lines).rstrip() + "\n"


def rows_of(found: dict[str, Any], table: str, seeds: Collection[int]) -> dict[str, dict[int, list[Evaluation]]]:
    """Row -> seed -> evaluations, of these seeds."""
    rows: dict[str, dict[int, list[Evaluation]]] = {}
    for key, evaluations in found["cells"].items():
        name, row, seed = key.split(" / ")
        if name == table and int(seed) in seeds:
            rows.setdefault(row, {})[int(seed)] = evaluations
    return rows


def by_time(rows: dict[str, dict[int, list[Evaluation]]], starts: dict[int, Evaluation]) -> list[str]:
    """One line a row; columns are the marks of processor time."""
    marks = sorted({mark for cells in rows.values() for cell in cells.values() for mark in timed(cell)})
    header = [
        "row",
        "seeds",
        "start",
        *(f"{mark} s" for mark in marks),
        "steps",
        "worst below start",
        "parse",
        "false pos.",
    ]
    lines = [_line(header), _line(["---"] * len(header))]
    for row, cells in rows.items():
        seeds = sorted(cells)
        at = [[timed(cells[seed]).get(mark) for seed in seeds] for mark in marks]
        f1 = [_spread([e["f1"] for e in column if e]) for column in at]
        worst = min(e["f1"] - starts[seed]["f1"] for seed in seeds for e in cells[seed])
        last = [timed(cells[seed])[marks[-1]] for seed in seeds if marks[-1] in timed(cells[seed])]
        ends = [f"{mean(e[name] for e in last):{form}}" for name, form in (("step", ".0f"),)] if last else [""]
        lines.append(
            _line(
                [
                    row,
                    str(len(seeds)),
                    _spread([starts[seed]["f1"] for seed in seeds]),
                    *f1,
                    *ends,
                    f"{worst:+.3f}",
                    f"{mean(e['parse_rate'] for e in last):.3f}" if last else "",
                    f"{mean(e['false_positives'] for e in last):.2f}" if last else "",
                ]
            )
        )
    return lines


def by_steps(rows: dict[str, dict[int, list[Evaluation]]], starts: dict[int, Evaluation]) -> list[str]:
    """Compares `expert` with references after the same number of optimizer steps, and so of samples."""
    pairs = []
    for seed, evaluations in sorted(rows.get("expert", {}).items()):
        control = {e["step"]: e for e in rows.get("references only", {}).get(seed, [])}
        pairs += [(seed, e, control[e["step"]]) for e in evaluations if e["step"] in control]
    if not pairs:
        return []
    lines = ["## After the same number of optimizer steps of 16 samples; constant rate", ""]
    lines += [_line(["seed", "steps", "start", "expert", "references only", "difference"]), _line(["---"] * 6)]
    for seed, mine, control in pairs:
        cells = [starts[seed]["f1"], mine["f1"], control["f1"]]
        difference = mine["f1"] - control["f1"]
        lines.append(_line([str(seed), str(mine["step"]), *(f"{x:.3f}" for x in cells), f"{difference:+.3f}"]))
    lines += ["", f"Mean difference {mean(mine['f1'] - control['f1'] for _, mine, control in pairs):+.3f}."]
    return lines


def timed(evaluations: list[Evaluation]) -> dict[int, Evaluation]:
    """The evaluations at marks of processor time, by mark."""
    return {e["mark"]: e for e in evaluations if e["mark"]}


def _spread(values: list[float]) -> str:
    return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else ""


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
