"""Writes files that are whole or absent, and computes checksums that hardly slow a save down."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from torch.serialization import get_crc32_options

_BLOCK = 2**18
"""A checksum is made of the sums of blocks of this size."""
_READ = 4 * _BLOCK
_PART = 256 * _BLOCK
"""One thread reads this much of a file."""
_ARCHIVE = 2**20
"""Smaller archives are read whole."""
_ENDING = 56 + 20 + 22
"""Bytes of the three records that end a zip archive in the 64-bit format; the last is there in every archive."""
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


def checksums(folder: Path, sizes: Mapping[str, int]) -> dict[str, str]:
    """
    Computes a checksum of each file of a folder, which finds what was changed, zeroed or moved by accident.

    It is the CRC-32 of the 64-bit sums of the file's blocks of 256 KiB, which run at the speed of memory, 4 times as
    fast as a CRC of every byte. An archive of `torch.save` holds the CRC of each of its tensors, so of one above 1 MiB
    only the directory is read; [`is_unchanged`] reads the tensors.

    Args:
        folder (`Path`):
            The folder.
        sizes (`Mapping[str, int]`):
            Maps each file to its size in bytes. Each is read once; several threads read a large file.

    Returns:
        `dict[str, str]`: maps each file to its checksum.
    """
    found = {}
    for name, size in sizes.items():
        path = os.path.join(folder, name)
        start = _directory_start(path, size) if size >= _ARCHIVE and get_crc32_options() else None
        found[name] = _sums(path, size) if start is None else _directory(path, start)
    return found


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
        size = os.path.getsize(path)
        if not checksum.startswith("directory"):
            return _sums(path, size) == checksum
        start = _directory_start(path, size)
        if start is None or _directory(path, start) != checksum:
            return False
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError):
        return False


def _sums(path: str | Path, size: int) -> str:
    parts = [(path, start, min(_PART, size - start)) for start in range(0, max(1, size), _PART)]
    if len(parts) == 1:  # starting threads takes longer than reading a small file
        return f"sums {zlib.crc32(_block_sums(parts[0])):08x}"
    with ThreadPoolExecutor(_THREADS) as pool:
        return f"sums {zlib.crc32(b''.join(pool.map(_block_sums, parts))):08x}"


def _block_sums(part: tuple[str | Path, int, int]) -> bytes:
    path, start, length = part
    buffer = bytearray(min(_READ, length + 7))  # only a whole number of words is summed
    sums = []
    with open(path, "rb") as file:
        file.seek(start)
        for _ in range(_PART // _READ):
            read = file.readinto(buffer)
            if not read:
                break
            words = -(-read // 8)
            buffer[read : 8 * words] = bytes(8 * words - read)
            blocks = np.arange(0, words, _BLOCK // 8)
            sums.append(np.add.reduceat(np.frombuffer(buffer, "<u8", words), blocks).astype("<u8").tobytes())
    return b"".join(sums)


def _directory_start(path: str | Path, size: int) -> int | None:
    """Finds the directory of an archive of `torch.save` from the records that end it; None for any other file."""
    with open(path, "rb") as file:
        file.seek(max(0, size - _ENDING))
        ending = file.read()
        at = ending[48:56] if ending.startswith(b"PK\x06\x06") else ending[-6:-2]
        start = int.from_bytes(at, "little")
        if ending[-22:-18] != b"PK\x05\x06" or start >= size:  # `torch.save` writes no comment behind its last record
            return None
        file.seek(start)
        return start if file.read(4) == b"PK\x01\x02" else None


def _directory(path: str | Path, start: int) -> str:
    with open(path, "rb") as file:
        file.seek(start)
        return f"directory {zlib.crc32(file.read()):08x}"
