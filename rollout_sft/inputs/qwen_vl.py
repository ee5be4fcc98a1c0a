"""Adapts Qwen2-VL to Qwen3.5, whose positions have three rows: time, height and width (mrope).

    text token      the next number in all three rows
    image           time: the number of its first token; height and width count its rows and columns from there
    after an image  the number that follows the larger of its rows and columns

A packed forward also takes a text row, which restarts at each segment and tells the attention where segments begin:
positions have the shape `(4, 1, tokens)`. With three rows or one, packed segments leak silently.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from packsched import Pack
from rollout_sft.inputs import placeholders
from rollout_sft.inputs.segment import Segment
from rollout_sft.inputs.vision import DummyImage, VisionInputs


class QwenVLInputs(VisionInputs):
    """
    Adapts qwen2_vl, qwen2_5_vl, qwen3_vl and qwen3_5; see [`~rollout_sft.inputs.base.InputAdapter`].

    Args:
        config (`PretrainedConfig`):
            Of the whole model.
        image_processor (`Qwen2VLImageProcessor`):
            Its `size` limits an image's pixels.
    """

    def __init__(self, config: Any, image_processor: Any):
        self._factor = factor = image_processor.patch_size * image_processor.merge_size
        self._type_of = {config.image_token_id: 1, config.video_token_id: 2}
        size = image_processor.size

        def seen(height: int, width: int) -> tuple[int, int]:
            resized: tuple[int, int] = smart_resize(height, width, factor, size["shortest_edge"], size["longest_edge"])
            return resized

        def run(height: int, width: int) -> list[int]:
            rows, columns = (side // factor for side in seen(height, width))
            return [config.image_token_id] * (rows * columns)

        super().__init__(
            image_processor,
            image_token_id=config.image_token_id,
            media_token_ids=frozenset(self._type_of),
            run=run,
            seen=seen,
            dummy=DummyImage(size=(factor, factor), run=[config.image_token_id], options={"do_resize": False}),
        )

    def check(self, segment: Segment) -> None:
        """Raises `ValueError` unless every image's tokens are in place, apart from those of other images."""
        super().check(segment)
        for number, (one, other) in enumerate(itertools.pairwise(self._find(segment))):
            if one[1] == other[0]:
                raise ValueError(
                    f"segment of sample {segment.sample_id!r}: images {number} and {number + 1} follow each other "
                    f"without a token between them (position {other[0]}), so the model takes them for one. Put each "
                    "between the tokens for the start and the end of an image, as the chat template does."
                )

    def packed(self, pack: Pack[Segment]) -> dict[str, Any]:
        """Returns `position_ids` of shape `(4, 1, tokens)`: one row for text, three for time, height and width."""
        rows = torch.cat([self.positions(segment) for segment in pack.segments], dim=1)
        return {"position_ids": rows[:, None]}

    def positions(self, segment: Segment) -> Tensor:
        """Returns the positions of one segment, int64 of shape `(4, tokens)`, on the segment's device."""
        tokens = segment.encoded_len
        rows = np.empty((4, tokens), dtype=np.int64)
        rows[0] = np.arange(tokens)
        done = position = 0
        for (begin, end), image in zip(self._find(segment), segment.images, strict=True):
            rows[1:, done:begin] = np.arange(position, position + begin - done)
            position += begin - done
            height, width = (side // self._factor for side in self.seen_size(image))
            rows[1:, begin:end] = position + np.indices((1, height, width)).reshape(3, -1)
            position += max(height, width)
            done = end
        rows[1:, done:] = np.arange(position, position + tokens - done)
        return torch.from_numpy(rows).to(segment.input_ids.device)

    def padded(self, rows: Sequence[Tensor], *, width: int, left: bool) -> dict[str, Any]:
        """
        Returns `mm_token_type_ids` of shape `(rows, width)`, from which the model makes its positions.

        Without them a padded rectangle silently gets wrong positions.
        """
        types = torch.zeros((len(rows), width), dtype=torch.int64)
        for row, ids in zip(types, rows, strict=True):
            own = row[width - len(ids) :] if left else row[: len(ids)]
            for token, kind in self._type_of.items():
                own[ids.cpu() == token] = kind
        return {"mm_token_type_ids": types}

    def _find(self, segment: Segment) -> list[tuple[int, int]]:
        where = f"segment of sample {segment.sample_id!r}"
        ids = segment.input_ids.tolist()
        return placeholders.find(ids, self._runs(segment.images), self._image_token, where=where)
