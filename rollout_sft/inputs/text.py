"""Adapts nothing: a text model reads token ids and positions, which collation makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from packsched import Pack
from rollout_sft.inputs.images import Image
from rollout_sft.inputs.segment import Segment


class TextInputs:
    """Adapts a model of text; see [`~rollout_sft.inputs.base.InputAdapter`]. Refuses segments with images."""

    media_token_ids: frozenset[int] = frozenset()
    image_token_id: int | None = None

    def image_tokens(self, image: Image) -> int:
        """Raises `ValueError`: the model reads no images."""
        raise _no_images("a sample")

    def seen_size(self, image: Image) -> tuple[int, int]:
        """Raises `ValueError`: the model reads no images."""
        raise _no_images("a sample")

    def expand(self, prompt_ids: Sequence[int], images: Sequence[Image]) -> list[int]:
        """Returns the prompt unchanged."""
        if images:
            raise _no_images("a prompt")
        return list(prompt_ids)

    def collapse(self, prompt_ids: Sequence[int], images: Sequence[Image]) -> list[int]:
        """Returns the prompt unchanged."""
        return self.expand(prompt_ids, images)

    def check(self, segment: Segment) -> None:
        """Raises `ValueError` for a segment with images."""
        if segment.images:
            raise _no_images(f"the segment of sample {segment.sample_id!r}")

    def dummy(self) -> Segment | None:
        """Returns None: an empty pack needs no image."""
        return None

    def packed(self, pack: Pack[Segment]) -> dict[str, Any]:
        """Returns no further arguments."""
        return {}

    def padded(self, rows: Sequence[Tensor], *, width: int, left: bool) -> dict[str, Any]:
        """Returns no further arguments."""
        return {}

    def media(self, images: Sequence[Image]) -> dict[str, Any]:
        """Returns no further arguments."""
        if images:
            raise _no_images("a forward")
        return {}


def _no_images(where: str) -> ValueError:
    return ValueError(
        f"{where} has images, but the model reads text alone. Train an image model (see docs/images.md), or leave the "
        "images out."
    )
