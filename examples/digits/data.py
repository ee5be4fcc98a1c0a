"""
The data set of the digits, made as it is asked for.

For K digits the answer takes 12 K + 2 tokens, end token included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from examples.digits.canvas import MOST_DIGITS, PATCH, SPLITS, Array, canvas_tokens, paint
from examples.digits.tokenizer import build_digits_tokenizer


def load_digits(
    *,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    size: int | None,
    seed: int,
    max_digits: int = 12,
    ramp_fraction: float = 0.0,
) -> DigitsDataset:
    """
    Makes the data set that a `data` section with `source: examples.digits.data:load_digits` asks for.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The run's tokenizer; the prompts are written with the digits' own.
        split (`str`):
            `train`, `eval` or `test`.
        size (`int`, *optional*):
            Number of canvases; 1024 when not given.
        seed (`int`):
            Decides which canvases are painted.
        max_digits, ramp_fraction:
            What `arguments` of the section holds; see [`DigitsDataset`].
    """
    size = 1024 if size is None else size
    return DigitsDataset(split, size, seed, max_digits=max_digits, ramp_fraction=ramp_fraction)


class DigitsDataset(Dataset[dict[str, Any]]):
    """
    Canvases with digits. Item `i` depends on `split`, `seed` and `i` (and the ramp) alone.

    Items are `{"id": str, "prompt_ids": list[int], "objects": list[dict]}`.

    Args:
        split (`str`):
            `train`, `eval` or `test`: disjoint images.
        size (`int`):
            Number of canvases.
        seed (`int`, *optional*, defaults to 0):
            Other seeds paint other canvases.
        max_digits (`int`, *optional*, defaults to 12):
            A canvas holds 1 to this many digits, evenly distributed; 15 at most.
        ramp_fraction (`float`, *optional*, defaults to 0.0):
            Over this first share of the items, in order, the most digits rises from 2 to `max_digits`.
            Training from scratch needs it (and a sampler that keeps the order): with full canvases from the
            start F1 stays at .2.

    Raises:
        `ValueError`: an argument outside its range.
    """

    step = PATCH
    """Digits stand at multiples of it from left to right."""

    def __init__(self, split: str, size: int, seed: int = 0, *, max_digits: int = 12, ramp_fraction: float = 0.0):
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; the digits have {', '.join(SPLITS)}.")
        if size < 1:
            raise ValueError(f"size is {size}; an empty data set trains nothing: give 1 or more.")
        if seed < 0:
            raise ValueError(f"seed is {seed}; give 0 or more.")
        if not 1 <= max_digits <= MOST_DIGITS:
            raise ValueError(f"max_digits is {max_digits}; a canvas has room for 1 to {MOST_DIGITS}.")
        if not 0 <= ramp_fraction <= 1:
            raise ValueError(f"ramp_fraction is {ramp_fraction}; give a share of the data set, 0 to 1.")
        self.split = split
        self.size = size
        self.seed = seed
        self.max_digits = max_digits
        self.ramp_fraction = ramp_fraction

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        canvas, objects = self._paint(index)
        vocabulary = _vocabulary()
        return {
            "id": f"{self.split}-{self.seed}-{index}",
            "prompt_ids": [vocabulary[token] for token in canvas_tokens(canvas)],
            "objects": objects,
        }

    def canvas(self, index: int) -> Array:
        """The pixels of item `index`, shape `(40, 40)`, values 0..16."""
        return self._paint(index)[0]

    def for_pictures(self, size: int) -> DigitsDataset:
        """Returns a data set of the same kind with canvases of the split `test`."""
        return DigitsDataset("test", size, self.seed, max_digits=self.max_digits)

    def to_pixels(self, objects: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Returns objects as pictures draw them: here their boxes are in pixels already."""
        return [dict(item) for item in objects]

    def most_digits(self, index: int) -> int:
        """The most digits that item `index` may hold."""
        ramp = self.ramp_fraction * self.size
        risen = 1.0 if index >= ramp else index / ramp
        low = min(2, self.max_digits)
        return low + int(risen * (self.max_digits - low))

    def _paint(self, index: int) -> tuple[Array, list[dict[str, Any]]]:
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} of {self.size} canvases")
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        count = int(rng.integers(1, self.most_digits(index) + 1))
        return paint(rng, self.split, count, step=self.step)


@cache
def _vocabulary() -> Mapping[str, int]:
    vocabulary: dict[str, int] = build_digits_tokenizer().get_vocab()
    return vocabulary
