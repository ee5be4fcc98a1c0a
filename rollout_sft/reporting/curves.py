"""Draws a run over its optimizer steps: loss, score, fill, seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rollout_sft.reporting.metrics import is_own_metric

_FILLS = {"packing/post_rollout_fill": "all GA packs", "packing/fill_non_empty": "non-empty packs", "padding/fill": ""}
_SECONDS = {"time/rollout_s": "rollout", "time/train_s": "training", "time/weight_sync_s": "weight sync"}
_MOST_SCORES = 4


def draw_curves(log_history: Sequence[dict[str, Any]], path: str | Path, title: str) -> None:
    """
    Draws four panels from the trainer's log.

    Args:
        log_history (`Sequence[dict]`):
            The trainer's log.
        path (`str` or `Path`):
            The PNG file to write.
        title (`str`):
            The title above the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(10, 6), layout="constrained", sharex=True)
    figure.suptitle(title)
    loss, score, fill, seconds = panels.flat
    _draw(loss, log_history, {"loss": "training"})
    _draw_scores(score, log_history)
    _draw(fill, log_history, _FILLS)
    fill.set_ylim(0, 1.05)
    _draw(seconds, log_history, _SECONDS)
    seconds.set_ylim(bottom=0)
    for panel, name in zip(panels.flat, ("loss", "score", "fill of the packs", "seconds per step"), strict=True):
        panel.set_title(name, loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8, frameon=False)
    for panel in panels[1]:
        panel.set_xlabel("optimizer step")
        panel.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_scores(panel: Any, log: Sequence[dict[str, Any]]) -> None:
    """Draws F1 where there is one, else what the user's target builder counts."""
    names = {name.removeprefix("eval_") for entry in log for name in entry if isinstance(entry[name], int | float)}
    scores = ["rollout/f1"] if "rollout/f1" in names else sorted(filter(is_own_metric, names))[:_MOST_SCORES]
    for number, name in enumerate(scores):
        label = "F1" if name == "rollout/f1" else name.rpartition("/")[2]
        _draw(panel, log, {name: f"{label}, rollouts in training"}, color=f"C{number}", alpha=0.4)
        _draw(panel, log, {f"eval_{name}": f"{label}, evaluation"}, color=f"C{number}", marker="o", markersize=4)


def _draw(panel: Any, log: Sequence[dict[str, Any]], names: dict[str, str], **style: Any) -> None:
    for name, label in names.items():
        points = [(entry["step"], entry[name]) for entry in log if name in entry and "step" in entry]
        if points:
            look = {"linewidth": 1.2, "marker": "." if len(points) < 30 else None, **style}
            panel.plot(*zip(*points, strict=True), label=label or None, **look)
