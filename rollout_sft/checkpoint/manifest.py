"""Marks finished checkpoints with a manifest, and finds and checks finished checkpoints.

The mark is written last, when every rank is done. A process killed during a save leaves a folder without it, and the
previous checkpoint stays. The manifest lists the files with sizes and checksums, so that a file that is damaged later
is refused by name, and the settings of the run ([`~rollout_sft.checkpoint.settings`]).
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rollout_sft.checkpoint.atomic_files import write_atomically
from rollout_sft.config.shorten import cut, shorten

logger = logging.getLogger(__name__)

FINISHED = "finished"
"""Name of the file that marks a checkpoint as complete."""
FORMAT = 3
"""Version of the manifest's format; increased when an older reader would misread the manifest."""
_EARLIER = re.compile(r'\{"format": ([12]), ')
"""How the manifests of earlier formats begin."""
_READ = 2**19
"""Larger reads are hardly faster, and the memory for them has to be cleared first."""


class DamagedCheckpointError(ValueError):
    """Raised when a file of a checkpoint differs from what was saved."""


def mark_finished(checkpoint: str | Path, trained_with: Mapping[str, Any]) -> None:
    """
    Marks a checkpoint as complete.

    Args:
        checkpoint (`str` or `Path`):
            The checkpoint's folder; every rank must have finished writing to it.
        trained_with (`Mapping[str, Any]`):
            What a run that resumes from it must have in common with this one, as JSON.
    """
    folder = Path(checkpoint)
    buffer = memoryview(bytearray(_READ))
    files = {path[len(str(folder)) + 1 :]: _describe(path, buffer) for path in sorted(_files(str(folder)))}
    manifest = {"format": FORMAT, "files": files, "trained_with": trained_with}
    write_atomically(folder / FINISHED, json.dumps(manifest) + "\n")


def mark_unfinished(checkpoint: str | Path) -> None:
    """
    Removes the mark before a checkpoint is written again.

    Args:
        checkpoint (`str` or `Path`):
            The checkpoint's folder; it need not exist.
    """
    (Path(checkpoint) / FINISHED).unlink(missing_ok=True)


def last_finished_checkpoint(output_dir: str | Path) -> str | None:
    """
    Finds the latest checkpoint whose save was not interrupted.

    Args:
        output_dir (`str` or `Path`):
            The run's folder.

    Returns:
        `str` or `None`: its path, or None when there is none.
    """
    return next(iter(_finished(output_dir)), None)


def rotate(output_dir: str | Path, limit: int | None, *, step: int, best_step: int | None = None) -> None:
    """
    Retires the checkpoints of later steps, then removes checkpoints until `limit` are left: unfinished ones, then the
    oldest.

    Checkpoints of later steps are left over from a run that this one replaces, or that it was resumed from before its
    end. They lose their mark, so that the next resume does not go on from them. Steps decide, not times: a folder that
    was copied, or a clock that was set back, makes no checkpoint older.

    Args:
        output_dir (`str` or `Path`):
            The run's folder.
        limit (`int`, *optional*):
            `training.save_total_limit`; None or 0 keeps all.
        step (`int`):
            The step of the checkpoint that was just saved, which stays.
        best_step (`int`, *optional*):
            The step of the best checkpoint, which stays too.
    """
    found = _checkpoints(output_dir)
    for at in found:
        if at > step:
            mark_unfinished(found[at])
    order = sorted(found, key=lambda at: ((found[at] / FINISHED).is_file(), at))
    removable = [at for at in order if at not in (step, best_step)]
    for at in removable[: max(0, len(found) - limit) if limit else 0]:
        shutil.rmtree(found[at], ignore_errors=True)


def read_finished(checkpoint: str | Path, *, contents: bool = True) -> dict[str, Any] | None:
    """
    Reads the manifest of a checkpoint; refuses one that is incomplete or damaged.

    Args:
        checkpoint (`str` or `Path`):
            The checkpoint's folder.
        contents (`bool`, *optional*, defaults to `True`):
            Whether to read every file; if not, only the sizes are compared.

    Returns:
        `dict` or `None`: what the run was trained with; None for a checkpoint of an earlier version, which has an empty
        mark and cannot be checked.

    Raises:
        `ValueError`: its save was interrupted, or another program wrote it.
        [`DamagedCheckpointError`]: a file is missing, cut off or changed; names it and the last good checkpoint.
    """
    folder = Path(checkpoint)
    if not (folder / FINISHED).is_file():
        raise ValueError(
            f"{checkpoint} has no file named {FINISHED}: its save was interrupted, or another program wrote it. "
            f"{_last_good(folder)} If you know that it is complete, put an empty file of that name into it."
        )
    text = (folder / FINISHED).read_text(encoding="utf-8", errors="replace")
    if not text.strip():
        logger.warning(
            "%s has no manifest (an earlier version saved it, or the mark was put there by hand): its files and the "
            "settings of its run cannot be checked.",
            checkpoint,
        )
        return None
    if earlier := _EARLIER.match(text):
        raise ValueError(
            f"{checkpoint} was saved by an earlier version: its manifest has format {earlier[1]}, which lacks settings "
            f"that format {FORMAT} compares. Resume it with the version that saved it. If you know that its files are "
            f"whole and the settings the same, empty its file {FINISHED}; then nothing is compared."
        )
    damage = _damage(folder, text, contents)
    if damage is not None:
        raise DamagedCheckpointError(f"{checkpoint} is damaged: {damage}. {_last_good(folder)}")
    trained_with: dict[str, Any] = json.loads(text)["trained_with"]
    return trained_with


def _files(folder: str) -> Iterator[str]:
    """Finds every file below a folder but the mark."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path)
            elif entry.is_file() and entry.name != FINISHED:
                yield entry.path


def _describe(path: str | Path, buffer: memoryview) -> dict[str, Any]:
    """Reads a whole file for its checksum; XXH3 runs at the speed of memory."""
    checksum, size = xxhash.xxh3_128(), 0
    with open(path, "rb", buffering=0) as file:
        while read := file.readinto(buffer):
            checksum.update(buffer[:read])
            size += read
    return {"size": size, "checksum": checksum.hexdigest()}


def _damage(folder: Path, text: str, contents: bool) -> str | None:
    """Says what is wrong with the files of a manifest; returns None if nothing is."""
    try:
        manifest = json.loads(text)
        version = manifest["format"]
        expected = {folder / name: _size_and_checksum(file) for name, file in manifest["files"].items()}
        for part in ("settings", "how_long", "versions"):
            manifest["trained_with"][part].items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"its manifest {FINISHED} cannot be read ({type(error).__name__}: {cut(str(error), 200)})"
    if version != FORMAT:
        return f"its manifest {FINISHED} has format {shorten(version)}, and this version reads format {FORMAT}"
    buffer = memoryview(bytearray(_READ))
    try:
        for path, (size, _) in expected.items():
            name = cut(str(path.relative_to(folder)), 200)
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes and was saved with {size}"
        for path, (_, checksum) in expected.items() if contents else ():
            if _describe(path, buffer)["checksum"] != checksum:
                return f"{cut(str(path.relative_to(folder)), 200)} was changed after it was saved"
    except (OSError, ValueError) as error:  # a name that no file can have, or one outside of the folder
        return f"its manifest {FINISHED} names a file that cannot be read ({cut(str(error), 200)})"
    return None


def _size_and_checksum(file: Any) -> tuple[int, str]:
    size, checksum = file["size"], file["checksum"]
    if not isinstance(size, int) or not isinstance(checksum, str):
        raise TypeError(f"size {shorten(size)}, checksum {shorten(checksum)}")
    return size, checksum


def _finished(output_dir: str | Path) -> list[str]:
    """Lists the finished checkpoints of a run, the latest first."""
    found = _checkpoints(output_dir)
    return [str(found[step]) for step in sorted(found, reverse=True) if (found[step] / FINISHED).is_file()]


def _checkpoints(output_dir: str | Path) -> dict[int, Path]:
    steps = {}
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if step.isascii() and step.isdigit() and path.is_dir():
            steps[int(step)] = path
    return steps


def _last_good(folder: Path) -> str:
    """Names the last undamaged checkpoint in the same run folder, in a sentence."""
    for other in _finished(folder.parent):
        text = (Path(other) / FINISHED).read_text(encoding="utf-8", errors="replace")
        if Path(other) != folder and (not text.strip() or _damage(Path(other), text, contents=True) is None):
            return f"The last good checkpoint of this run is {other}."
    return "This run has no other finished checkpoint that is undamaged."
