"""
Canvases of digits as real images for an image model: RGB pictures of 40x40 pixels, of which a token covers 8x8.

Digits stand on the 8-pixel grid, so that each lies in one token; boxes are thousandths of the image, as Qwen3-VL writes
them. A configuration reaches the parts by import path:

    model: {tokenizer_name_or_path: "examples.digits.images:build_image_tokenizer"}
    data:  {train: {source: "examples.digits.images:load_image_digits", size: 16000, arguments: {ramp_fraction: 0.5}}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from examples.digits.canvas import ANSWER, CANVAS, DIGIT, INK
from examples.digits.data import DigitsDataset
from examples.digits.tokenizer import JSON, word_tokenizer
from rollout_sft.data.boxes import LARGEST, to_norm1000, to_pixels
from rollout_sft.inputs.base import InputAdapter
from rollout_sft.inputs.images import Image

IMAGE, VIDEO, START, END = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"


def build_image_tokenizer() -> PreTrainedTokenizerFast:
    """Makes the tokenizer: 31 tokens; a coordinate in thousandths and a digit with its quotes are one token each."""
    coordinates = [str(x * LARGEST // CANVAS) for x in range(0, CANVAS + 1, DIGIT)]
    words = [START, IMAGE, END, VIDEO, ANSWER, *coordinates, *(f'"{digit}"' for digit in range(10)), *JSON]
    return word_tokenizer(words)


def load_image_digits(
    *,
    tokenizer: PreTrainedTokenizerBase,
    adapter: InputAdapter,
    split: str,
    size: int | None,
    seed: int,
    max_digits: int = 12,
    ramp_fraction: float = 0.0,
) -> ImageDigitsDataset:
    """
    Makes the data set that a `data` section with `source: examples.digits.images:load_image_digits` asks for.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The run's tokenizer.
        adapter (`InputAdapter`):
            The model's; it knows how many tokens an image takes.
        split, size, seed, max_digits, ramp_fraction:
            As in [`~examples.digits.data.load_digits`].
    """
    prompt = tokenizer(f"{START}{IMAGE}{END}{ANSWER}")["input_ids"]
    return ImageDigitsDataset(
        split,
        1024 if size is None else size,
        seed,
        max_digits=max_digits,
        ramp_fraction=ramp_fraction,
        prompt_ids=adapter.expand(prompt, (draw(np.zeros((CANVAS, CANVAS))),)),
    )


class ImageDigitsDataset(DigitsDataset):
    """
    Canvases as images; see [`~examples.digits.data.DigitsDataset`].

    Items are `{"id": str, "prompt_ids": list[int], "images": tuple[Image, ...], "objects": list[dict]}`.

    Args:
        prompt_ids (`Sequence[int]`):
            The prompt with all tokens of an image; all canvases have one size.
        arguments, keywords:
            As in `DigitsDataset`.
    """

    step = DIGIT

    def __init__(self, *arguments: Any, prompt_ids: Sequence[int], **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.prompt_ids = list(prompt_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        canvas, objects = self._paint(index)
        image, name = draw(canvas), f"{self.split}-{self.seed}-{index}"
        objects = to_norm1000(objects, image, name)
        return {"id": name, "prompt_ids": list(self.prompt_ids), "images": (image,), "objects": objects}

    def for_pictures(self, size: int) -> ImageDigitsDataset:
        """Returns a data set of the same kind with canvases of the split `test`."""
        return ImageDigitsDataset("test", size, self.seed, max_digits=self.max_digits, prompt_ids=self.prompt_ids)

    def to_pixels(self, objects: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Turns boxes from thousandths back into pixels."""
        return to_pixels(objects, draw(np.zeros((CANVAS, CANVAS))))


def draw(canvas: NDArray[np.float64]) -> Image:
    """Draws ink white on black: the model learns it sooner than black on white."""
    grey = (canvas * 255 / INK).round().astype(np.uint8)
    return Image(source=np.repeat(grey[..., None], 3, axis=-1), height=grey.shape[0], width=grey.shape[1])
