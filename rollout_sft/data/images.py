"""
Reads the images of a record as references: checks each file or its bytes, and finds its size, without its pixels.

    "images": ["photos/1.jpg", ...]            paths, from the folder of the file that holds the record
    "images": [{"bytes": ..., "path": ...}]    what `datasets` and Parquet hold

Damage is found now: a PNG by its checksums, other files by decoding them once, a JPEG at an eighth of its size (about a
millisecond).
"""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image as Pictures

from rollout_sft.config.shorten import cut, shorten
from rollout_sft.inputs.images import Image, digest_of

MAX_PIXELS = 89_478_485
"""An image with more is refused as a decompression bomb; 256 MiB as RGB, and what Pillow warns from on."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is opened. Others are not tried: some of Pillow's readers start programs."""
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
"""Kinds of pixels that `convert("RGB")` keeps; it clips those with more than 8 bits."""
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)
_PNG = b"\x89PNG\r\n\x1a\n"
_LATE = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
"""Parts of a PNG file that may say how it is rotated."""


def read_images(given: Any, place: str, folder: Path) -> tuple[Image, ...]:
    """
    Checks the images of one record and finds their sizes.

    Args:
        given (`Any`):
            The record's `images`: paths, or mappings with `bytes` or `path`.
        place (`str`):
            The start of every message: file and line.
        folder (`Path`):
            What paths are relative to.

    Returns:
        `tuple[Image, ...]`: in the order of the record.

    Raises:
        `ValueError`: an image is missing, damaged, cut off, of a kind that is not read, or has too many pixels.
    """
    if not isinstance(given, list | tuple):
        raise ValueError(f"{place}: images is {shorten(given)}; give a list of paths, in the order of their places.")
    return tuple(_read_image(one, f"{place}: images[{i}]", folder) for i, one in enumerate(given))


def _read_image(given: Any, where: str, folder: Path) -> Image:
    if isinstance(given, Pictures.Image):
        raise ValueError(f"{where} is a decoded image; give its path or its bytes, so that it waits in little memory.")
    source = given
    if isinstance(given, Mapping):
        source = given.get("bytes") or given.get("path")
    if isinstance(source, bytes):
        return _check(io.BytesIO(source), source, f"{where} ({len(source)} bytes)")
    if not isinstance(source, str) or not source:
        raise ValueError(f"{where} is {shorten(given)}; give the path of an image, or a mapping with its bytes.")
    if source.startswith(("http://", "https://", "data:")):
        raise ValueError(f"{where} is {shorten(source)}; images are not fetched: download it and give its path.")
    where = f"{where}, {cut(source, 200)},"
    try:
        path = folder / Path(source).expanduser()
        file = path.open("rb")
    except FileNotFoundError:
        raise ValueError(f"{where} does not exist; paths are taken from {cut(str(folder.absolute()), 200)}.") from None
    except (OSError, ValueError, RuntimeError) as error:  # a folder, no permission, a zero byte, an unknown user's home
        raise ValueError(f"{where} cannot be opened: {_reason(error)}.") from None
    with file:
        return _check(file, str(path), where)


def _check(file: BinaryIO, source: str | bytes, where: str) -> Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Pictures.DecompressionBombWarning)  # refused below
            opened = Pictures.open(file, formats=FORMATS)
        frames = getattr(opened, "n_frames", 1) if opened.format != "MPO" else 1  # a photo and its preview
    except Pictures.DecompressionBombError:
        raise ValueError(f"{where} has more than twice the {MAX_PIXELS} pixels that are read; shrink it.") from None
    except Exception as error:  # Pillow's readers raise anything for a damaged header
        raise ValueError(
            f"{where} is no image that can be read ({_reason(error)}); give one of {', '.join(FORMATS)}."
        ) from None
    width, height = opened.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{where} has {width} x {height} pixels, more than the {MAX_PIXELS} that are read; shrink it.")
    if opened.mode not in _MODES:
        raise ValueError(
            f"{where} has pixels of kind {opened.mode}, more than 8 bits a channel, which would be clipped; save it "
            "with 8 bits a channel."
        )
    if frames > 1:
        raise ValueError(f"{where} holds {frames} pictures; videos and animations are not trained: save one of them.")
    try:
        if opened.format != "PNG" or not _is_whole_png(file):
            opened.draft(None, (1, 1))  # of a JPEG, an eighth of the size shows the same damage
            opened.load()
        sideways = Pictures.Image.getexif(opened).get(_ORIENTATION) in _SIDEWAYS
    except Exception as error:  # as above
        raise ValueError(f"{where} is cut off or damaged: {_reason(error)}; replace it.") from None
    digest = None
    if isinstance(source, str):  # bytes cannot change
        file.seek(0)
        digest = digest_of(file.read())
    height, width = (width, height) if sideways else (height, width)
    return Image(source=source, height=height, width=width, digest=digest)


def _is_whole_png(file: BinaryIO) -> bool:
    """
    Compares the checksum of each part; returns False where only decoding shows more.

    A text behind the pixels may rotate the image, and Pillow reads it when it decodes.
    """
    place = file.tell()
    try:
        return _read_png(file)
    finally:
        file.seek(place)


def _read_png(file: BinaryIO) -> bool:
    file.seek(len(_PNG))
    pixels = False
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if length > MAX_PIXELS:
            return False
        data, check = file.read(length), file.read(4)
        if len(check) < 4:
            break
        if zlib.crc32(data, zlib.crc32(kind)).to_bytes(4, "big") != check:
            raise OSError(f"part {kind.decode('ascii', 'replace')} has another checksum")
        pixels |= kind == b"IDAT"
        if pixels and kind in _LATE:
            return False
        if kind == b"IEND":
            return pixels
    raise OSError("its end is missing")


def _reason(error: BaseException) -> str:
    return cut(str(getattr(error, "strerror", None) or error) or type(error).__name__, 120).rstrip(".")
