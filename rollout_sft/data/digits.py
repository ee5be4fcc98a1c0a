"""
Digit detection as text: a real task that learns in minutes on a CPU and needs no download.

The prompt is a canvas in patch codes ([`rollout_sft.data.canvas`]), the answer a JSON list of boxes with
the digit as `desc`. For K digits the answer takes 12 K + 2 tokens, end token included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from rollout_sft.data.canvas import ANSWER, CANVAS, CODES, PATCH, ROW, SPLITS, Array, canvas_tokens, code_name, paint

if TYPE_CHECKING:
    from rollout_sft.config.run import DataSpec
    from rollout_sft.trainer import RolloutSFTTrainer

_PAD, _EOS, _UNK = "<pad>", "<eos>", "<unk>"
_JSON = ["[", "]", '{"desc": ', ', "bbox_2d": [', ", ", "]}"]
MOST_DIGITS = 15
"""So many always find a place on the canvas."""


def build_digits_tokenizer() -> PreTrainedTokenizerFast:
    """
    The tokenizer of the digits: 96 tokens, a coordinate and a digit one token each, `]}` and the like too.

    A coordinate is the same token in the canvas and in the answer. A digit is a token together with its
    quotes, so that the class 4 and the coordinate 4 differ.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = [_PAD, _EOS, _UNK, ROW, ANSWER]
    words += [code_name(k) for k in range(CODES)]
    words += [str(x) for x in range(0, CANVAS + 1, PATCH)]
    words += [f'"{digit}"' for digit in range(10)]
    words += _JSON
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=_UNK))
    # The longest piece first: `, "bbox_2d": [` begins with `, `.
    pieces = "|".join(re.escape(piece) for piece in sorted(_JSON, key=len, reverse=True))
    pattern = Regex(rf'<[a-z0-9]+>|\d+|"\d"|{pieces}')
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=_PAD, eos_token=_EOS, unk_token=_UNK, clean_up_tokenization_spaces=False
    )


@cache
def _vocabulary() -> Mapping[str, int]:
    vocabulary: dict[str, int] = build_digits_tokenizer().get_vocab()
    return vocabulary


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
            A canvas holds 1 to so many digits, evenly distributed; 15 at most.
        ramp_fraction (`float`, *optional*, defaults to 0.0):
            Over this first share of the items, in order, the most digits rises from 2 to `max_digits`.
            Training from scratch needs it (and a sampler that keeps the order): with full canvases from the
            start F1 stays at .2.

    Raises:
        `ValueError`: an argument outside its range.
    """

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
        return paint(rng, self.split, count)


def draw_answers(trainer: RolloutSFTTrainer, spec: DataSpec, path: str | Path, *, canvases: int = 8) -> None:
    """
    Draws test canvases with the boxes that the trainer's model predicts on them and the true ones. Every rank takes
    part in the prediction, rank 0 draws.

    Args:
        trainer (`RolloutSFTTrainer`):
            Answers as in evaluation; its target builder must be [`ObjectsTargetBuilder`].
        spec (`DataSpec`):
            The digits evaluated on; only the seed and the number of digits are used, the split is `test`.
        path (`str` or `Path`):
            The PNG file to write.
        canvases (`int`, *optional*, defaults to 8):
            How many.
    """
    from rollout_sft.data.picture import draw_canvases
    from rollout_sft.targets.objects.builder import ObjectsTargetBuilder

    builder = trainer.target_builder
    if not isinstance(builder, ObjectsTargetBuilder):
        return  # another builder's answers need not be boxes
    dataset = DigitsDataset("test", canvases, spec.seed or 0, max_digits=spec.max_digits)
    samples = [dataset[i] for i in range(canvases)]
    predicted = [builder.read_answer(rollout) for rollout in trainer.roll_out(samples)]
    if trainer.is_world_process_zero():
        draw_canvases([dataset.canvas(i) for i in range(canvases)], predicted, [s["objects"] for s in samples], path)
