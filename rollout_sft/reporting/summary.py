"""Shows the results of a run: a table, and a picture of how one window was packed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rollout_sft.reporting.metrics import is_own_metric

SUMMARY_FILE = "summary.json"
ROWS = {
    "eval F1 before": ("f1_before", "{:.3f}"),
    "eval F1 after": ("f1_after", "{:.3f}"),
    "eval parse rate after": ("parse_rate_after", "{:.3f}"),
    "false positives per sample after": ("false_positives_after", "{:.2f}"),
    "optimizer steps": ("steps", "{:.0f}"),
    "fill, mean over all GA packs": ("fill", "{:.3f}"),
    "fill, non-empty packs": ("fill_non_empty", "{:.3f}"),
    "non-empty packs per window": ("non_empty_packs", "{:.2f}"),
    "lower bound of packs per window": ("lower_bound", "{:.2f}"),
    "seconds per optimizer step": ("step_s", "{:.3f}"),
    "largest part of a step": ("largest_part", "{}"),
    "its share of the step": ("largest_part_share", "{:.0%}"),
    "rollout seconds, total": ("rollout_s", "{:.1f}"),
    "training seconds, total": ("train_s", "{:.1f}"),
    "tokens generated": ("tokens_generated", "{:,.0f}"),
    "of these, kept in segments": ("tokens_kept", "{:,.0f}"),
    "tokens trained": ("tokens_trained", "{:,.0f}"),
}
Numbers = dict[str, float | str]
"""The numbers of a stage by name, and the name of the part that takes longest."""


def summarise(log_history: Sequence[dict[str, Any]], before: dict[str, float], after: dict[str, float]) -> Numbers:
    """
    Computes the numbers of one stage's column.

    Args:
        log_history (`Sequence[dict]`):
            The trainer's log.
        before (`dict`):
            Metrics of the evaluation before training.
        after (`dict`):
            Metrics of the evaluation after training.

    Returns:
        `dict`: maps names to values, without those that were not measured. The numbers that the user's own target
        builder or backend counts keep their names: `name` is the mean over training, `eval_name_before` and
        `eval_name_after` are those of the evaluations. `largest_part` names the part of a step that takes longest.
    """
    lines = [entry for entry in log_history if "time/train_s" in entry]

    steps = [entry["step"] for entry in lines]
    covered = [step - before for before, step in pairwise((0, *steps))]
    """Each line holds means over the optimizer steps since the one before it."""

    def held(name: str) -> list[tuple[float, int]]:
        return [(entry[name], count) for entry, count in zip(lines, covered, strict=True) if name in entry]

    def total(name: str) -> float:
        return sum(value * count for value, count in held(name))

    def mean(name: str) -> float | None:
        count = sum(count for _, count in held(name))
        return total(name) / count if count else None

    found: dict[str, float | str | None] = {
        "f1_before": before.get("eval_rollout/f1"),
        "f1_after": after.get("eval_rollout/f1"),
        "parse_rate_after": after.get("eval_rollout/parse_rate"),
        "false_positives_after": after.get("eval_rollout/false_positives"),
        "steps": float(sum(covered)),
        "fill": mean("packing/post_rollout_fill"),
        "fill_non_empty": mean("packing/fill_non_empty"),
        "non_empty_packs": mean("packing/non_empty_packs"),
        "lower_bound": mean("packing/lower_bound"),
        "step_s": mean("time/step_s"),
        "rollout_s": total("time/rollout_s"),
        "train_s": total("time/train_s"),
        **{f"tokens_{name}": total(f"tokens/{name}") for name in ("generated", "kept", "trained")},
    }
    parts = {name for entry in lines for name in entry if name.startswith("time/")} - {"time/step_s"}
    seconds = {part: total(part) for part in sorted(parts)}
    if sum(seconds.values()):
        largest = max(seconds, key=lambda part: seconds[part])
        found["largest_part"] = largest.removeprefix("time/").removesuffix("_s")
        found["largest_part_share"] = seconds[largest] / sum(seconds.values())
    own: dict[str, float | str | None] = {
        name: mean(name) for name in sorted({name for entry in lines for name in entry if is_own_metric(name)})
    }
    for scores, suffix in ((before, "_before"), (after, "_after")):
        own |= {f"{n}{suffix}": v for n, v in scores.items() if n.startswith("eval_") and is_own_metric(n[5:])}
    return {name: value for name, value in {**found, **own}.items() if value is not None}


def print_table(stages: Sequence[tuple[str, Numbers]], title: str) -> None:
    """
    Prints one column per stage.

    Args:
        stages (`Sequence[tuple[str, dict]]`):
            Name and numbers of each stage.
        title (`str`):
            The title above the table.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name, _ in stages:
        table.add_column(name, justify="right")
    for label, (key, form) in ROWS.items():
        if any(key in numbers for _, numbers in stages):
            table.add_row(label, *(form.format(n[key]) if key in n else "-" for _, n in stages))
    taken = {key for key, _ in ROWS.values()}
    for key in dict.fromkeys(key for _, numbers in stages for key in numbers if key not in taken):
        table.add_row(_label(key), *(f"{n[key]:.3f}" if key in n else "-" for _, n in stages))
    Console().print(table)


def _label(key: str) -> str:
    """Words the name of a user's own metric, such as `eval_answers/accepted_after`."""
    if not key.startswith("eval_"):
        return f"{key} in training, mean"
    name, _, when = key.removeprefix("eval_").rpartition("_")
    return f"eval {name} {when}"


def draw_packs(pack_lens: Sequence[Sequence[int]], packing_length: int, path: str | Path, title: str) -> None:
    """
    Draws how the segments of one window lie in its packs.

    Args:
        pack_lens (`Sequence[Sequence[int]]`):
            For each micro-step the lengths of its segments, in order.
        packing_length (`int`):
            The cap of a pack, drawn as a line.
        path (`str` or `Path`):
            The PNG file to write.
        title (`str`):
            The title above the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.42 * len(pack_lens)), layout="constrained")
    colours = plt.get_cmap("tab20")
    drawn = 0
    for row, lens in enumerate(pack_lens):
        start = 0
        for length in lens:
            axes.barh(row, length, left=start, height=0.8, color=colours(drawn % 20), edgecolor="white", linewidth=0.8)
            axes.text(start + length / 2, row, str(length), ha="center", va="center", fontsize=7)
            start, drawn = start + length, drawn + 1
        note = f"{start / packing_length:.0%}" if lens else "empty"
        axes.text(packing_length * 1.01, row, note, va="center", fontsize=8)
    axes.axvline(packing_length, color="black", linewidth=1)
    axes.set(
        xlim=(0, packing_length * 1.1),
        ylim=(len(pack_lens) - 0.4, -0.6),  # the first micro-step on top
        yticks=range(len(pack_lens)),
        yticklabels=[f"micro-step {i + 1}" for i in range(len(pack_lens))],
        xlabel=f"tokens (packing_length {packing_length})",
        title=title,
    )
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= packing_length])
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
