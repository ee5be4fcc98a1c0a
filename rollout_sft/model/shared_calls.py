"""Tells which segments of a pack share a call of a layer, one segment a row, and where their tokens lie."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

SAME_CALL = 64
"""Segments up to this many tokens shorter than the longest one share its call. PyTorch's fallbacks for the kernels
compute in chunks of this many tokens, so that the padding costs little."""


class SharedCalls:
    """Tells which segments share a call of a layer, and where their tokens lie; the same for all layers of a forward.

    Args:
        borders (`Tensor` of shape `(segments + 1,)`):
            Where each segment begins and ends.
        masked (`bool`):
            Whether the layer gets a mask, or a bias for each key: its part is cut out, and no padding is added.
        spread (`int`):
            How many tokens shorter a segment may be than the longest one of its call.
    """

    def __init__(self, borders: Tensor, *, masked: bool, spread: int):
        bounds = borders.tolist()
        self.total: int = bounds[-1]
        lens = [end - start for start, end in pairwise(bounds)]
        self._spans = list(pairwise(bounds)) if masked else []
        groups = [[i] for i in range(len(lens))] if masked else calls(lens, spread)
        place = torch.empty(self.total, dtype=torch.int64)
        self.shapes, tokens, before = [], [], 0
        for group in groups:
            width = max(bounds[i + 1] - bounds[i] for i in group)
            for row, i in enumerate(group):
                start, end = bounds[i], bounds[i + 1]
                # Behind a segment its last token is repeated: zeros could be special to a layer, a token is not.
                tokens.append(torch.arange(start, start + width).clamp_(max=end - 1))
                place[start:end] = before + row * width + torch.arange(end - start)
            self.shapes.append((len(group), width))
            before += len(group) * width
        self._tokens = torch.cat(tokens).to(borders.device)
        self._place = place.to(borders.device)

    def split(self, value: Any) -> list[Any]:
        """Returns the part of an argument that each call gets; what does not run along the row is shared."""
        if isinstance(value, tuple | list):
            return list(zip(*(self.split(part) for part in value), strict=True)) or [value] * len(self.shapes)
        if self._spans and isinstance(value, Tensor) and value.ndim in (2, 4) and value.shape[-2:] == (self.total,) * 2:
            return [value[..., start:end, start:end] for start, end in self._spans]
        if self._spans and isinstance(value, Tensor) and value.shape[1:] == (1, self.total):
            # It counts from the first key, as when the segment is alone.
            return [value[:, :, : end - start] for start, end in self._spans]
        if not isinstance(value, Tensor) or value.shape[:2] != (1, self.total):
            return [value] * len(self.shapes)
        spread = value[0].index_select(0, self._tokens)
        parts = spread.split([rows * width for rows, width in self.shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def join(self, values: Sequence[Any]) -> Any:
        """Undoes [`split`] for what the calls returned. States become None: there is none for the whole row."""
        if isinstance(values[0], tuple | list):
            return tuple(self.join(column) for column in zip(*values, strict=True))
        if not all(isinstance(v, Tensor) and v.shape[:2] == s for v, s in zip(values, self.shapes, strict=True)):
            return None
        return torch.cat([value.flatten(0, 1) for value in values]).index_select(0, self._place)[None]


def calls(lens: Sequence[int], spread: int = SAME_CALL) -> list[list[int]]:
    """
    Groups segments of similar length, which share a call of a layer.

    Args:
        lens (`Sequence[int]`):
            The length of each segment.
        spread (`int`, *optional*, defaults to 64):
            How many tokens shorter a segment may be than the longest one of its call.

    Returns:
        `list[list[int]]`: the indices of each call, long segments first.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lens)), key=lambda i: (-lens[i], i)):
        if groups and lens[i] >= lens[groups[-1][0]] - spread:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
