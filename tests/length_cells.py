"""One cell of the table of gradients and probes at every length: a family, as it is or with other frequencies."""

import re

import torch

from rollout_sft.checks.leak_probe import LeakError, check_isolation
from rollout_sft.checks.length_probe import check_lengths
from rollout_sft.checks.unsupported import reject_unknown_positions
from tests.row_lengths import LENGTHS, ROTARY, as_trained, build, difference, small_config

COLUMNS = ("as it is", *ROTARY, "probe")
NO = "-"
WRONG = 1e-6
"""Parts in float32 round differently in a pack; more than this is a fault."""


def measure(family: str, column: str) -> str:
    """One cell: `yes` and a number, `refused` and a reason, or why nothing is known."""
    kinds = (None, *ROTARY) if column == "probe" else (None if column == "as it is" else column,)
    cells = [(_probe if column == "probe" else _gradient)(family, kind) for kind in kinds]
    known = [cell for cell in cells if cell != NO]
    if column != "probe" or not known or not all(cell.startswith("yes") for cell in known):
        return next((cell for cell in known if not cell.startswith("yes")), known[0] if known else NO)
    return f"yes, {max(float(cell.split()[1]) for cell in known):.0e}"


def _model(family: str, kind: str | None, dtype: torch.dtype):
    found = small_config(family, kind)
    return found and build(found[0], dtype)


def _gradient(family: str, kind: str | None) -> str:
    reason = ""
    for dtype in (torch.float64, torch.float32):  # some experts and routers refuse float64
        try:
            model = _model(family, kind, dtype)
            if not model:
                return NO
            apart = difference(model)
        except Exception as error:
            reason = f"not built: {_short(error)}"
            continue
        if apart <= WRONG:
            return f"yes, {apart:.0e}"
        refusal = _probe(family, kind)
        return refusal if refusal.startswith("refused") else f"**wrong**, {apart:.0e}"
    refusal = _probe(family, kind)
    return refusal if refusal.startswith("refused") else reason


def _probe(family: str, kind: str | None) -> str:
    """What both probes say in float32: the larger of the numbers, or how the model is refused."""
    try:
        model = _model(family, kind, torch.float32)
        if not model:
            return NO
    except Exception:
        return NO
    try:
        reject_unknown_positions(model)
        with as_trained(model).active():
            short, lengths = check_isolation(model, vocab_size=96), check_lengths(model, sum(LENGTHS), vocab_size=96)
    except LeakError as error:
        moved = re.search(r"by ([0-9.e+-]+) ", str(error))
        return f"refused, {float(moved[1]):.0e}" if moved else f"refused: {_short(error)}"
    except ValueError as error:
        return f"refused: {_short(error)}"
    assert lengths is not None
    return f"yes, {max(short.leak, lengths.moved, lengths.alone):.0e}"


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"(?<!\S)/\S+", "PATH", text).replace("|", "/")
    return text if len(text) <= 70 else text[:67] + "..."
