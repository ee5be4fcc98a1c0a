"""Gradients and probe at every length, for all causal decoders; `benchmarks.mask_table` writes the table.

    python -m benchmarks.length_table                    measures every family: ten minutes
    python -m benchmarks.length_table --only FAMILY ...  measures these again

Every length in a family's tiny configuration is made shorter than the longest segment (`tests/row_lengths.py`). The
gradient of a pack is compared with that of its segments alone, as the family is and with frequencies that read the row.
Keeps what it finds in `benchmarks/results/lengths.json`; `resume.json` beside it has the same keys.
"""

from __future__ import annotations

import argparse
import json

import transformers

from benchmarks import mask_table
from tests.length_cells import COLUMNS, measure
from tests.row_lengths import LENGTHS, ROTARY

RESULTS = mask_table.RESULTS.with_name("lengths.json")
RESUME = mask_table.RESULTS.with_name("resume.json")
NO = "-"


def section() -> str:
    """The table of the page, with the column of resumed runs where that was measured."""
    found: dict[str, dict[str, str]] = json.loads(RESULTS.read_text())
    resumed = json.loads(RESUME.read_text()) if RESUME.exists() else {}
    built = {f: row for f, row in found.items() if row["as it is"].startswith(("yes", "refused", "**"))}
    right = sum(row["as it is"].startswith("yes") for row in built.values())
    turned = [row[kind] for row in built.values() for kind in ROTARY if row[kind].startswith(("yes", "refused", "**"))]
    wrong = sum(row["as it is"].startswith("**") for row in built.values())
    counted = [sum(cell.startswith(kind) for cell in turned) for kind in ("yes", "refused", "**")]
    lines = [
        f"| {f} | {' | '.join(_cell(row[c]) for c in COLUMNS)} | {_cell(resumed.get(f, {}).get('1 rank', NO))} |"
        for f, row in built.items()
    ]
    return (
        f"Segments of {', '.join(map(str, LENGTHS))} tokens in one pack; every length in the configuration is 8, 16 or "
        "32 (windows, chunks, top-k, original context, floors of scales, also where it is not set by default). The "
        "number is the relative difference of the pack's gradient from that of the segments alone, each by a plain "
        "forward of a new model; float64, or float32 where experts or routers refuse it. `dynamic` and `longrope`: "
        "with such frequencies; a dash where the family has none, or refuses them itself. *Probe*: what both probes "
        "measure in float32, the worst of the three. *Resume*: whether a resumed run equals the uninterrupted one bit "
        f"for bit (`make test-families`).\n\n**{right} of {len(built)} decoders train packs of all lengths, "
        f"{len(built) - right - wrong} are refused, {wrong} are wrong**; with `dynamic` and `longrope` frequencies "
        f"{counted[0]} of {len(turned)} cells are right, {counted[1]} refused, {counted[2]} wrong. "
        "The probe refuses hy_v4 and dots3_note_text with a small top-k. In hy_v4 no segment sees another, but single "
        "positions differ from the plain forward; the cause is not known. dots3_note_text was not examined.\n\n"
        f"| family | {' | '.join(COLUMNS)} | resume |\n|---{'|---' * (len(COLUMNS) + 1)}|\n" + "\n".join(lines)
    )


def _cell(text: str) -> str:
    return NO if text.startswith("not built") else text if len(text) <= 60 else text[:57] + "..."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="measure these families and keep the other rows")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    found: dict[str, dict[str, str]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    probed: dict[str, dict[str, str]] = json.loads(mask_table.RESULTS.read_text())
    for family in arguments.only or [f for f in probed if f not in mask_table.NO_DECODERS]:
        reason = probed[family][mask_table.AUTO]
        if reason.startswith(mask_table.NOT_BUILT):
            found[family] = dict.fromkeys(COLUMNS, reason)
            continue
        found[family] = {c: mask_table.in_own_process(family, c, work=measure) for c in COLUMNS}
        print(family, found[family], flush=True)
        RESULTS.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
