"""Holds an image by reference: its file, its encoded bytes, or its uint8 pixels; decoded when its pack is collated."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
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
    """

    source: str | bytes | np.ndarray = field(repr=False)
    height: int
    width: int

    def pixels(self) -> Pictures.Image:
        """Decodes the image to RGB, rotated as EXIF asks."""
        if isinstance(self.source, np.ndarray):
            return Pictures.fromarray(self.source)
        opened = Pictures.open(Path(self.source) if isinstance(self.source, str) else io.BytesIO(self.source))
        return ImageOps.exif_transpose(opened).convert("RGB")
