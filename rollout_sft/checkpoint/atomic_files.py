"""Writes files that are whole or absent, and computes checksums that hardly slow a save down."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from torch.serialization import get_crc32_options

_BLOCK = 2**18
_PART = 256 * _BLOCK
_THREADS = min(8, os.cpu_count() or 1)


def write_atomically(path: str | Path, text: str) -> None:
    """
    Writes a file at once: a process that dies while it writes leaves the old file, or none.

    Args:
        path (`str` or `Path`):
            The file; its folder is created if it does not exist.
        text (`str`):
            The content, written as UTF-8.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def checksums(paths: Collection[Path]) -> dict[Path, str]:
    """
    Computes a checksum of each file, which finds what was changed, zeroed or moved by accident.

    It is the CRC-32 of the 64-bit sums of the file's blocks of 256 KiB, which run at the speed of memory, 4 times as
    fast as a CRC of every byte. A large archive of `torch.save` holds the CRC of each of its tensors, so only its
    directory is read; [`is_unchanged`] reads the tensors.

    Args:
        paths (`Collection[Path]`):
            The files. Each is read once; several threads read a large file.

    Returns:
        `dict[Path, str]`: maps each path to its checksum.
    """
    found = {path: _directory_checksum(path) for path in paths if _is_large_archive(path)}
    rest = [path for path in paths if path not in found]
    parts = [(path, start) for path in rest for start in range(0, max(1, path.stat().st_size), _PART)]
    sums: dict[Path, int] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        large = len(parts) > len(rest)  # starting threads takes longer than reading small files
        for (path, _), part in zip(parts, (pool.map if large else map)(_block_sums, parts), strict=True):
            sums[path] = zlib.crc32(part, sums.get(path, 0))
    return {**found, **{path: f"sums {checksum:08x}" for path, checksum in sums.items()}}


def is_unchanged(path: Path, checksum: str) -> bool:
    """
    Reads a whole file and compares it with its checksum.

    Args:
        path (`Path`):
            The file.
        checksum (`str`):
            What [`checksums`] said when it was saved.

    Returns:
        `bool`: False if anything in the file has changed that is ever read.
    """
    try:
        if checksums([path])[path] != checksum:
            return False
        if checksum.startswith("directory"):
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
    except (zipfile.BadZipFile, OSError):
        return False
    return True


def _is_large_archive(path: Path) -> bool:
    return path.stat().st_size > _PART and get_crc32_options() and zipfile.is_zipfile(path)


def _directory_checksum(path: Path) -> str:
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        file.seek(archive.start_dir)
        return f"directory {zlib.crc32(file.read()):08x}"


def _block_sums(part: tuple[Path, int]) -> bytes:
    path, start = part
    buffer = bytearray(_BLOCK)
    sums = []
    with path.open("rb") as file:
        file.seek(start)
        for _ in range(_PART // _BLOCK):
            read = file.readinto(buffer)
            if not read:
                break
            words = -(-read // 8)
            buffer[read : 8 * words] = bytes(8 * words - read)
            sums.append(np.frombuffer(buffer, "<u8", words).sum(dtype=np.uint64))
    return np.array(sums, "<u8").tobytes()
