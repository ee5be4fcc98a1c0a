"""Writes `benchmarks/results/families.md`: how far each family's gradient is from that of its segments alone.

The tests marked `families` keep their numbers here, one JSON file for all; `make test-families` thus makes the table
again, and a single one of these tests renews its own cells.
"""

import json
from pathlib import Path

import torch
import transformers

from tests.hybrids import FLOAT32

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
KEPT = RESULTS / "families.json"
IMAGES, HYBRIDS = "images", "hybrids"
COLUMNS = {
    IMAGES: [
        *(f"1 rank, {schedule}" for schedule in ("micro", "dense", "balanced", "no packing")),
        *(f"{way}, {schedule}" for way in ("DDP", "FSDP2") for schedule in ("micro", "dense", "balanced", "global")),
    ],
    HYBRIDS: [
        "probe",
        "own precision",
        *(f"{way}, {scope}" for way in ("1 rank", "DDP", "FSDP2") for scope in ("micro", "window", "global")),
    ],
}


def record(table, family, cells):
    """Keeps the numbers of some cells of a family and writes the page again."""
    found = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    kept = found.setdefault(table, {}).setdefault(family, {})
    kept.update({name: float(f"{number:.1e}") for name, number in cells.items()})
    found[table] = {name: dict(sorted(row.items())) for name, row in sorted(found[table].items())}
    KEPT.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
    (RESULTS / "families.md").write_text(page(found))


def page(found):
    return f"""# The gradient of every image and hybrid family beside its segments alone

Made by `make test-families`: tiny random models, the real trainer, float64, a CPU (torch {torch.__version__},
transformers {transformers.__version__}). Each number is the relative difference (2-norm) between the gradient that
reaches the optimizer and that of the same segments one by one through the model's own plain forward; the worst of its
cells. `families.json` beside this page has every cell. A dash: not run.

## Image families

Segments of 0, 1 and 2 images of different sizes; the vision tower is compared by itself as well, and the worse number
stands here. Every column is run with and without gradient checkpointing; on two ranks each of these in three layouts:
images on both ranks, no image on rank 1, no segment on rank 1. qwen3_5 computes its norm in float32.

{_table(found, IMAGES)}

## Hybrid families

Segments of 2 to 90 tokens, some shorter than the convolutions; on one rank rollouts. On two ranks scope `micro` is
run with gradient checkpointing, scope `window` with segments on both ranks and, checkpointed, with none on rank 1,
scope `global` with all segments on rank 0 before they move. *Probe* is the leak that the
probe measures in float32. *Own precision* is one pack without the trainer, as the model computes it; in the columns
behind it the parts that compute in float32 whatever the dtype of the model run in float64. kimi_linear and
olmo_hybrid keep a float32 part all the same; {" and ".join(FLOAT32)} refuse float64 and run in float32.

{_table(found, HYBRIDS)}
"""


def _table(found, table):
    columns, rows = COLUMNS[table], found.get(table, {})
    lines = [f"| family | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for family, cells in rows.items():
        worst = [
            max((number for name, number in cells.items() if f"{name}, ".startswith(f"{column}, ")), default=None)
            for column in columns
        ]
        lines.append(f"| {family} | {' | '.join('-' if n is None else f'{n:.0e}' if n else '0' for n in worst)} |")
    return "\n".join([*lines, "", f"{sum(map(len, rows.values()))} cells of {len(rows)} families."])


def record_kernel(family, way, cell):
    """Keeps what a family's pack gave through a stand-in for a GPU kernel, and writes that page again."""
    path = RESULTS / "kernels.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    found.setdefault(family, {})[way] = f"{cell:.0e}" if isinstance(cell, float) else cell
    found = {name: dict(sorted(cells.items())) for name, cells in sorted(found.items())}
    path.write_text(json.dumps(found, indent=1) + "\n")
    ways = sorted({way for cells in found.values() for way in cells})
    rows = [f"| {name} | {' | '.join(cells.get(way, '-') for way in ways)} |" for name, cells in found.items()]
    path.with_suffix(".md").write_text(
        "# Packs through stand-ins for GPU kernels\n\n"
        "Made by `make test-families`: a pack of five segments (7, 1, 12, 3 and 20 tokens) of every causal language\n"
        "model that builds tiny, through exact stand-ins in plain torch for the kernels of a GPU (tests/standins).\n"
        "Each number is the relative difference (2-norm) of its gradient from that of the segments one by one through\n"
        "the model's own plain forward; float64, but for what a model or the eager softmax computes in float32.\n"
        f"torch {torch.__version__}, transformers {transformers.__version__}.\n\n"
        + "\n".join([f"| family | {' | '.join(ways)} |", "|---" * (len(ways) + 1) + "|", *rows, ""])
    )
