"""Holds an image by reference: its file, its encoded bytes, or its uint8 pixels; decoded when its pack is collated."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash
from PIL import Image as Pictures
from PIL import ImageOps


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """
    Holds one image of a sample, without its decoded pixels.

    A waiting segment, a carry buffer and a checkpoint hold this reference; a COCO image would take 7.4 MB as pixels.

    Args:
        source (`str`, `bytes` or `ndarray` of shape `(height, width, 3)`, uint8):
            The path of the file, its encoded bytes, or RGB pixels.
        height (`int`):
            Rows of pixels, after the rotation that EXIF asks for.
        width (`int`):
            Columns of pixels, after the rotation that EXIF asks for.
        digest (`int`, *optional*):
            [`digest_of`] the file when its size was found; a file that has another one now is refused. Not compared
            when not given.
    """

    source: str | bytes | np.ndarray = field(repr=False)
    height: int
    width: int
    digest: int | None = None

    def pixels(self) -> Pictures.Image:
        """
        Decodes the image to RGB, rotated as EXIF asks.

        Raises:
            `ValueError`: its file changed since its size was found, or it has another size; the tokens and positions of
                its segment are those of the recorded size.
        """
        if isinstance(self.source, np.ndarray):
            return self._checked(Pictures.fromarray(self.source))
        encoded = Path(self.source).read_bytes() if isinstance(self.source, str) else self.source
        changed = self.digest is not None and digest_of(encoded) != self.digest
        image = self._checked(ImageOps.exif_transpose(Pictures.open(io.BytesIO(encoded))).convert("RGB"))
        if changed:
            raise ValueError(f"the image {self._name()} has another content than when the data were read. {_CHANGED}")
        return image

    def _checked(self, image: Pictures.Image) -> Pictures.Image:
        if (image.height, image.width) != (self.height, self.width):
            raise ValueError(
                f"the image {self._name()} has {image.width} x {image.height} pixels, but {self.width} x {self.height} "
                f"when the data were read. {_CHANGED}"
            )
        return image

    def _name(self) -> str:
        return self.source if isinstance(self.source, str) else f"(a {type(self.source).__name__})"


_CHANGED = "Its tokens and positions are those of the old one: put it back, or start the run again."


def digest_of(encoded: bytes) -> int:
    """Returns a number of 63 bits that almost surely differs between two contents (XXH3)."""
    return xxhash.xxh3_64_intdigest(encoded) >> 1
