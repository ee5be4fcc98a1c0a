"""Adapts models whose images become tokens of the text's one row of positions; holds what all image models share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from packsched import Pack
from rollout_sft.inputs import placeholders
from rollout_sft.inputs.images import Image
from rollout_sft.inputs.segment import Segment

Run = Callable[[int, int], list[int]]
"""Maps the height and width of an image to the tokens that the model reads for it."""


@dataclass(frozen=True, kw_only=True)
class DummyImage:
    """
    Describes the smallest image that a model can read: black, and not resized as a user's image of its size would be.

    Args:
        size (`tuple[int, int]`):
            Height and width in pixels.
        run (`list[int]`):
            The tokens that the model reads for it.
        options (`Mapping[str, Any]`):
            Arguments of the image processor's call that leave it small.
    """

    size: tuple[int, int]
    run: list[int]
    options: Mapping[str, Any] = field(default_factory=dict)


class VisionInputs:
    """
    Adapts an image model with positions `0, 1, 2, ...` in each segment.

    Args:
        image_processor (`BaseImageProcessor`):
            Makes the pixels; its settings decide how many tokens an image has.
        image_token_id (`int`):
            The token that the model replaces by what it sees.
        media_token_ids (`frozenset[int]`):
            All tokens that stand for media.
        run (`Callable[[int, int], list[int]]`):
            Maps height and width to the tokens of an image.
        seen (`Callable[[int, int], tuple[int, int]]`):
            Maps height and width to the size after resizing.
        dummy (`DummyImage`):
            The smallest image.
        options (`Mapping[str, Any]`, *optional*):
            Arguments of the image processor's call.
    """

    def __init__(
        self,
        image_processor: Any,
        *,
        image_token_id: int,
        media_token_ids: frozenset[int],
        run: Run,
        seen: Callable[[int, int], tuple[int, int]],
        dummy: DummyImage,
        options: Mapping[str, Any] | None = None,
    ):
        self.media_token_ids = media_token_ids
        self.image_token_id: int | None = image_token_id
        self._image_token = image_token_id
        self._image_processor = image_processor
        self._run = run
        self._seen = seen
        self._dummy_image, self._options = dummy, dict(options or {})
        self._black = Image(source=np.zeros((*dummy.size, 3), np.uint8), height=dummy.size[0], width=dummy.size[1])
        weights = [0.0] * len(dummy.run)
        self._dummy = Segment.from_lists(
            dummy.run, dummy.run, weights, sample_id="<dummy image>", images=(self._black,)
        )

    def image_tokens(self, image: Image) -> int:
        """Returns how many tokens the model reads for the image, those around it included."""
        return len(self._run_of(image))

    def seen_size(self, image: Image) -> tuple[int, int]:
        """Returns the height and width in pixels that the model sees, after the image processor's resizing."""
        return self._dummy_image.size if image is self._black else self._seen(image.height, image.width)

    def expand(self, prompt_ids: Sequence[int], images: Sequence[Image]) -> list[int]:
        """See [`~rollout_sft.inputs.placeholders.expand`]."""
        return placeholders.expand(prompt_ids, self._runs(images), self._image_token)

    def collapse(self, prompt_ids: Sequence[int], images: Sequence[Image]) -> list[int]:
        """See [`~rollout_sft.inputs.placeholders.collapse`]."""
        return placeholders.collapse(prompt_ids, self._runs(images), self._image_token, where="the prompt")

    def check(self, segment: Segment) -> None:
        """Raises `ValueError` unless every image's tokens are in place and there are no others."""
        where = f"segment of sample {segment.sample_id!r}"
        ids = segment.input_ids.tolist()
        others = sorted((self.media_token_ids - {self._image_token}).intersection(ids))
        if others:
            raise ValueError(
                f"{where}: token {others[0]} at position {ids.index(others[0])} stands for a video or another medium, "
                "which is refused: only images are trained."
            )
        placeholders.find(ids, self._runs(segment.images), self._image_token, where=where)

    def dummy(self) -> Segment | None:
        """Returns a segment that holds one small black image."""
        return self._dummy

    def packed(self, pack: Pack[Segment]) -> dict[str, Any]:
        """Returns no further arguments: the positions are those of text."""
        return {}

    def padded(self, rows: Sequence[Tensor], *, width: int, left: bool) -> dict[str, Any]:
        """Returns no further arguments: the positions are those of text."""
        return {}

    def media(self, images: Sequence[Image]) -> dict[str, Any]:
        """Returns what the image processor makes of all images."""
        if not images:
            return {}
        # The dummy is alone in its forward, so its options hold for all images of the call.
        options = self._dummy_image.options if images[0] is self._black else self._options
        return self._preprocess([image.pixels() for image in images], options)

    def _preprocess(self, pixels: list[Any], options: Mapping[str, Any]) -> dict[str, Any]:
        return dict(self._image_processor(images=pixels, return_tensors="pt", **options))

    def _run_of(self, image: Image) -> list[int]:
        return list(self._dummy_image.run) if image is self._black else self._run(image.height, image.width)

    def _runs(self, images: Sequence[Image]) -> list[list[int]]:
        return [self._run_of(image) for image in images]
