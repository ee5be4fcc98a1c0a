"""Writes the tables and draws the chart of `benchmarks.step_time`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HEAD = (
    "| variant | s/step | useful tokens/s | x padded | useful FLOP/s of peak | peak memory | forwards "
    "| schedule + collate | gradient |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|\n"
)


def write(results: dict[str, Any], path: Path, notes: str) -> None:
    """Writes `path`.json with everything and `path`.md with the tables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    about = "\n".join(f"- {name}: {value}" for name, value in results["about"].items())
    parts = [f"# Step time\n\n{about}\n\n{notes}"]
    for table in results["tables"]:
        shape = (
            f"{table['segments']} segments, {table['tokens']:.0f} tokens per window on average; GA {table['ga']}, "
            f"packing_length {table['packing_length']}, fill over all GA packs {table['fill']:.2f}"
        )
        rows = "".join(_row(row) for row in table["rows"])
        parts.append(f"## Model {table['model']}, {table['workload']}\n\n{shape}.\n\n{HEAD}{rows}")
        if table["syncs"] is not None:
            parts.append(f"Waits for the device from the rollouts to the gradient: {table['syncs']}.\n")
    path.with_suffix(".md").write_text("\n".join(parts), encoding="utf-8")


def _row(row: dict[str, Any]) -> str:
    gradient = "segments are cut" if row["gradient"] is None else f"{row['gradient']:.1e}"
    overhead = "" if row["overhead"] is None else f"{row['overhead']:.2%}"
    return (
        f"| {row['variant']} | {row['seconds']:.4f} | {row['tokens_per_second']:,.0f} | {row['ratio']:.2f} "
        f"| {row['utilisation']:.1%} | {row['peak_bytes'] / 2**20:,.0f} MiB | {row['forwards']:.1f} "
        f"| {overhead} | {gradient} |\n"
    )


def draw(results: dict[str, Any], path: Path) -> None:
    """Draws one group of bars per table: useful tokens per second relative to padded micro-batches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tables = results["tables"]
    figure, axes = plt.subplots(figsize=(1.5 + 2.4 * len(tables), 3.6), layout="constrained")
    variants = [row["variant"] for row in tables[0]["rows"]]
    width = 0.8 / len(variants)
    colours = plt.get_cmap("viridis")
    for i, variant in enumerate(variants):
        heights = [next(r["ratio"] for r in t["rows"] if r["variant"] == variant) for t in tables]
        places = [x + (i - (len(variants) - 1) / 2) * width for x in range(len(tables))]
        bars = axes.bar(places, heights, width, label=variant, color=colours(i / len(variants)))
        axes.bar_label(bars, fmt="%.1f", fontsize=6)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(
        xticks=range(len(tables)),
        xticklabels=[f"{t['workload']}\n(model {t['model']})" for t in tables],
        ylabel="useful tokens/s, padded = 1",
        title=f"Same rollouts, same gradient: {results['about']['machine']}",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, ncols=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


COMMON = """\
Every row trains the same segments in the same optimizer steps (AdamW, learning rate 0), from the same weights.
`gradient`: relative difference to the segments run one by one, unpacked, in float32. `x padded`: median over rounds of
the ratio within a round. `useful FLOP/s of peak`: operations that the segments alone need, per second, over what a
matrix product reaches on this machine. `peak memory`: tensors at the worst moment of a step, weights not counted.
`packed per micro-batch` has no cap on its packs. The limit has no Trainer, no logging and no scheduling; where a window
takes several packs it cuts segments at their borders, which makes its attention a little cheaper than any schedule's.
"""
NOTES = {
    "cpu": COMMON
    + """
Lengths of all tables but the first are a sixteenth of those that the GPU preset has (short rollouts: 600 tokens, cap
16384). Seconds are of processor time.
""",
    "gpu": COMMON,
}
DRY_RUN = (
    COMMON
    + """
**A dry run**: a tiny model and short rollouts. It shows that everything runs and that the gradients agree; its seconds
and megabytes say nothing.
"""
)
