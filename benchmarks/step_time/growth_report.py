"""Tables and picture of `benchmarks.step_time.growth`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NOTES = """\
Seconds of a step are medians. `processor` and `clock`: all of the step. `model`: forward, loss, backward and optimizer,
in processor time. `own`: everything else, in processor time, of which `build` makes segments out of rollouts and
`schedule` chooses the packs. The model is a Qwen3 with two layers of width 64. An exponent k says that the time grows
like value^k; it is the slope in the logarithms over the upper half of the values.
"""
MEMORY = """\
Each trainer runs in a process of its own. After `gc.collect()`: the resident memory of the process, the objects that
Python's collector tracks, and the blocks that Python's allocator has handed out. The Trainer keeps every line of its
log for the checkpoint, one line per step here; its bytes and blocks are part of the other columns.
"""


def write(results: dict[str, Any], path: Path) -> None:
    """Writes the tables as Markdown."""
    about = "\n".join(f"- {name}: {value}" for name, value in results["about"].items())
    parts = [f"# Growth of a step\n\n{about}\n\n{NOTES}", _summary(results["tables"])]
    parts += [_axis(name, table) for name, table in results["tables"].items()]
    if results["memory"]:
        parts.append(_memory(results["memory"]))
    path.write_text("\n".join(parts), encoding="utf-8")


def _summary(tables: dict[str, Any]) -> str:
    lines = [
        "| what grows | trainer | exponent of the step | model | own work | own share, smallest value | largest |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for axis, table in tables.items():
        low, high = table["values"][0], table["values"][-1]
        for trainer, rows in table["seconds"].items():
            exponents = " | ".join(f"{table['exponents'][trainer][part]:.2f}" for part in ("step", "model", "own"))
            shares = " | ".join(f"{row['own'] / row['step']:.1%}" for row in (rows[0], rows[-1]))
            lines.append(f"| {axis}, {low:,} to {high:,} | {trainer} | {exponents} | {shares} |")
    return "\n".join(lines) + "\n"


def _axis(name: str, table: dict[str, Any]) -> str:
    lines = [
        f"## {name.capitalize()}\n\n{table['fixed']}.\n",
        f"| {name} | trainer | processor | clock | model | own | own share | build | schedule |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for i, value in enumerate(table["values"]):
        for trainer, rows in table["seconds"].items():
            row = rows[i]
            cells = " | ".join(f"{row[part]:.4f}" for part in ("step", "clock", "model", "own"))
            own = f"{row['own'] / row['step']:.1%} | {row['build']:.4f} | {row['schedule']:.4f}"
            lines.append(f"| {value:,} | {trainer} | {cells} | {own} |")
    return "\n".join(lines) + "\n"


def rise(points: list[dict[str, float]], part: str) -> float:
    """Returns by which share a number is higher at the last step than at the first that was measured."""
    return points[-1][part] / points[0][part] - 1


def without_log(points: list[dict[str, float]], part: str) -> float:
    """Returns the share by which `resident` or `blocks` rose, with the lines of the log taken off."""
    log = {"resident": "log_bytes", "blocks": "log_blocks"}[part]
    first, last = (point[part] - point[log] for point in (points[0], points[-1]))
    return last / first - 1


def _memory(runs: list[dict[str, Any]]) -> str:
    first, last = runs[0]["points"][0]["step"], runs[0]["points"][-1]["step"]
    lines = [
        f"## Memory after {last} steps against {first}\n\n{MEMORY}",
        "| trainer | resident, MiB | rise | without the log | tracked objects | rise | blocks | rise | without the log "
        "| log per step | segments that wait, mean |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for run in runs:
        points = run["points"]
        begin, end = points[0], points[-1]
        per_step = (end["log_bytes"] - begin["log_bytes"]) / (last - first)
        waiting = "" if run["waiting"] is None else f"{run['waiting']:.1f}"
        lines.append(
            f"| {run['trainer']} | {begin['resident'] / 2**20:.1f} to {end['resident'] / 2**20:.1f} "
            f"| {rise(points, 'resident'):+.2%} | {without_log(points, 'resident'):+.2%} "
            f"| {begin['tracked']:,} to {end['tracked']:,} | {rise(points, 'tracked'):+.2%} "
            f"| {begin['blocks']:,} to {end['blocks']:,} | {rise(points, 'blocks'):+.2%} "
            f"| {without_log(points, 'blocks'):+.2%} | {per_step:,.0f} bytes | {waiting} |"
        )
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any], path: Path) -> None:
    """Draws a panel for each axis, model and own work of each trainer, and one for the memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    for panel, (name, table) in zip(panels.flat, results["tables"].items(), strict=False):
        for number, (trainer, rows) in enumerate(table["seconds"].items()):
            look = {"color": f"C{number - 1}" if number else "grey", "linewidth": 1.2}
            panel.loglog(table["values"], [row["model"] for row in rows], linestyle="--", **look)
            panel.loglog(table["values"], [row["own"] for row in rows], marker=".", label=trainer, **look)
        panel.set(xlabel=name, ylabel="processor seconds per step")
        panel.set_xscale("log", base=2)
        panel.legend(fontsize=7, frameon=False, title="own work (model: dashed)", title_fontsize=7)
    used = len(results["tables"])
    if results["memory"]:
        _draw_memory(panels.flat[used], results["memory"])
        used += 1
    for panel in panels.flat[used:]:
        panel.remove()
    for panel in panels.flat[:used]:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
    figure.suptitle("No solid line (the trainer) should be steeper than its dashed one (the model)", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_memory(panel: Any, runs: list[dict[str, Any]]) -> None:
    for number, run in enumerate(runs):
        steps = [point["step"] for point in run["points"]]
        look = {"color": f"C{number - 1}" if number else "grey", "linewidth": 1.2}
        for part, line, label in (("resident", "-", run["trainer"]), ("tracked", ":", None)):
            first = run["points"][0][part]
            rises = [100 * (point[part] / first - 1) for point in run["points"]]
            panel.plot(steps, rises, linestyle=line, label=label, **look)
    panel.axhspan(-2, 2, color="grey", alpha=0.12, linewidth=0)
    panel.set(xlabel="optimizer steps", ylabel="% above the first measurement", ylim=(-4, 4))
    panel.legend(fontsize=7, frameon=False, title="resident memory (objects: dotted)", title_fontsize=7)
