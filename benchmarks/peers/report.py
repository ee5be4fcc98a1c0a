"""Tables of `benchmarks.peers`: medians over the rounds, and medians of the ratios within a round."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.peers.rows import PADDED, PADDING_FREE

Cell = dict[str, Any]
SAME_WORK = {"cpu": 1e-5, "gpu": 5e-2}
"""Largest gradient difference of a row that trains the same step: float32 and bfloat16."""

HEAD = (
    "| | s/step | wall s/step | tokens/s | x padded | x padding_free | forwards | peak memory | gradient |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|\n"
)
NOTES = """\
Every row of a table trains the same samples per optimizer step from the same weights (AdamW, learning rate 0), in a
process of its own. `gradient` is the relative difference to the window's segments one by one, unpacked, in float32; a
row that trains something else says *other work*. `s/step` is {seconds}; `x padded` and `x padding_free` are medians
over the rounds of the ratio of `s/step` within a round. `tokens/s` counts the samples' tokens, without padding. `peak
memory` is the rise above the process with nothing but its imports: weights, gradients, optimizer, activations.

- *TRL, its defaults*: gradient checkpointing is on. Precision is the model's in every row, and nothing is cut
  (`max_length=None`; TRL cuts at 1024 tokens by default).
- `chunked_nll` has no row: in TRL 1.16 it is a deprecated name of `nll`, which computes the loss in chunks.
- *packing (bfd) of the window alone*: TRL packs a whole data set, so that a step trains other samples than before. Here
  it gets one window and as many micro-steps as that makes packs, which TRL does not arrange by itself.
{device}"""
ON_CPU = """\
- On a CPU TRL projects every position to the vocabulary, on a GPU only the supervised ones. *logits as on a GPU* makes
  it do the same here: the fairer row for a large vocabulary and few supervised tokens.
- On a CPU TRL's packs have a dense mask; `rollout_sft` runs the attention of each segment alone. With flash attention
  on a GPU both do.
- Where `wall s/step` is well above `s/step`, the machine did other work as well: compare processor time, and ratios.
"""
ON_GPU = """\
- Published for the lengths of TRL #6092 on one H100, 1.7B, batch 8: padded 5,235 tokens/s and 44.4 GB, sample-packed
  7,167 and 38.8 GB, a budget of 16k tokens 7,282 and 37.1 GB.
"""
DRY_RUN = "\n**A dry run**: a tiny model and short windows. Its seconds and megabytes say nothing.\n"


def write(about: dict[str, str], cells: list[Cell], path: Path, preset: str, *, dry_run: bool) -> None:
    """Writes `path`.json with every cell and `path`.md with the tables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(
        json.dumps({"about": about, "cells": cells}, indent=1) + "\n", encoding="utf-8"
    )
    seconds = "processor time" if preset == "cpu" else "wall time until the device is done"
    notes = NOTES.format(seconds=seconds, device=ON_CPU if preset == "cpu" else ON_GPU)
    lines = "\n".join(f"- {name}: {value}" for name, value in about.items())
    parts = [f"# TRL and rollout_sft\n\n{lines}\n\n{notes}{DRY_RUN if dry_run else ''}"]
    parts += [table(own, preset) for own in tables(cells).values()]
    path.with_suffix(".md").write_text("\n".join(parts), encoding="utf-8")


def tables(cells: list[Cell]) -> dict[tuple[str, int, str], list[Cell]]:
    """Groups the cells by model, vocabulary and workload."""
    found: dict[tuple[str, int, str], list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: cell["vocabulary"]):
        found.setdefault((cell["shape"], cell["vocabulary"], cell["workload"]), []).append(cell)
    return found


def table(cells: list[Cell], preset: str) -> str:
    first, rounds = cells[0], len({cell["round"] for cell in cells})
    tokens = statistics.mean(cell["tokens"] for cell in cells if "tokens" in cell)
    head = (
        f"## {first['workload']}, vocabulary {first['vocabulary']:,}, model {first['shape']}\n\n"
        f"{first['batch']} samples and {tokens:,.0f} tokens per step, {first['supervised']:.0%} supervised; "
        f"packing_length {first['packing_length']}; {rounds} rounds.\n\n"
    )
    names = list(dict.fromkeys(cell["row"] for cell in cells))
    return head + HEAD + "".join(row(name, cells, preset) for name in names)


def row(name: str, cells: list[Cell], preset: str) -> str:
    own = [cell for cell in cells if cell["row"] == name]
    done = [cell for cell in own if "failed" not in cell]
    if not done:
        return f"| {name} | {own[0]['failed'].replace('|', '/')} | | | | | | | |\n"
    median = {n: statistics.median(c[n] for c in done) for n in ("seconds", "wall_seconds", "forwards", "peak_bytes")}
    rate = statistics.median(cell["tokens"] / cell["seconds"] for cell in done)
    worst = max(cell["gradient"] for cell in done)
    gradient = f"{worst:.1e}" if worst <= SAME_WORK[preset] else f"other work ({worst:.1e})"
    ratios = [ratio(name, base, cells) for base in (PADDED, PADDING_FREE)]
    return (
        f"| {name} | {median['seconds']:.3f} | {median['wall_seconds']:.3f} | {rate:,.0f} | "
        + " | ".join("" if r is None else f"{r:.2f}" for r in ratios)
        + f" | {median['forwards']:g} | {median['peak_bytes'] / 2**20:,.0f} MiB | {gradient} |\n"
    )


def ratio(name: str, base: str, cells: list[Cell]) -> float | None:
    """Returns how many times as fast as `base` a row is: the median over the rounds that have both."""
    seconds = {(cell["round"], cell["row"]): cell["seconds"] for cell in cells if "failed" not in cell}
    rounds = sorted({number for number, _ in seconds})
    pairs = [(seconds.get((n, base)), seconds.get((n, name))) for n in rounds]
    found = [theirs / own for theirs, own in pairs if theirs and own]
    return statistics.median(found) if found else None


def draw(about: dict[str, str], cells: list[Cell], path: Path) -> None:
    """Draws one group of bars per table: tokens per second relative to TRL's padded batches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    groups = tables(cells)
    names = [name for name in dict.fromkeys(cell["row"] for cell in cells) if name != PADDED]
    figure, axes = plt.subplots(figsize=(3 + 1.4 * len(groups), 4.2), layout="constrained")
    width = 0.84 / len(names)
    for i, name in enumerate(names):
        heights = [ratio(name, PADDED, own) or 0 for own in groups.values()]
        places = [x + (i - (len(names) - 1) / 2) * width for x in range(len(groups))]
        colours = plt.get_cmap("Greens" if "TRL" not in name else "Greys")
        bars = axes.bar(places, heights, width, label=name, color=colours(0.35 + 0.08 * i))
        axes.bar_label(bars, fmt="%.1f", fontsize=5)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(
        xticks=range(len(groups)),
        xticklabels=[f"{workload}\nvocabulary {vocabulary:,}" for _, vocabulary, workload in groups],
        ylabel="tokens/s, TRL padded = 1",
    )
    axes.set_title(f"Same model, samples and optimizer steps: {about['machine']}", fontsize=9)
    axes.tick_params(axis="x", labelsize=6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", fontsize=7, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
