"""Saves and loads the lengths from which the waves of the next window follow (`rollout_matching.rollout_waves`)."""

from __future__ import annotations

import json
from pathlib import Path

_NAME = "response_lens.json"


def save_response_lens(lens: list[int], checkpoint: str | Path) -> None:
    """Writes the lengths of the last window's responses, those of all ranks, into the checkpoint's folder."""
    folder = Path(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _NAME).write_text(json.dumps(lens))


def load_response_lens(checkpoint: str | Path) -> list[int]:
    """Returns the lengths that a checkpoint holds; none if it was saved with one wave."""
    path = Path(checkpoint) / _NAME
    lens: list[int] = json.loads(path.read_text()) if path.is_file() else []
    return lens
