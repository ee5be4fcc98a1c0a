"""Makes the segments of the leak probe, and the arguments of its packed and plain forwards."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import torch

from rollout_sft.inputs.base import InputAdapter
from rollout_sft.inputs.images import Image
from rollout_sft.inputs.segment import Segment, pack_of
from rollout_sft.model.forward import Inputs
from rollout_sft.step.collate import forward_inputs

SIZES = ((32, 32), (32, 64))
"""Height and width of a segment's two images, before the image processor; they have different numbers of tokens."""


def probe_segments(vocabulary: int, length: int, adapter: InputAdapter) -> list[Segment]:
    """
    Makes segments of one length; does not use the global generator.

    Args:
        vocabulary (`int`):
            Token ids are drawn below it.
        length (`int`):
            Tokens of text in each segment.
        adapter (`InputAdapter`):
            Its media tokens are not drawn, and their images are added.

    Returns:
        `list[Segment]`: two that differ at every token of text, in all pixels and in the places of their images; for an
            image model also one with the tokens and places of the first and the pixels of the second.
    """
    x, y = draw_tokens(vocabulary, length, without=adapter.media_token_ids)
    if adapter.image_token_id is None:
        return [_segment(ids, (), adapter) for ids in (x, y)]
    some, others = _images(seed=0), _images(seed=1)
    elsewhere = _segment(y, others, adapter, shift=1)
    return [_segment(x, some, adapter), elsewhere, _segment(x, others, adapter)]


def draw_tokens(
    vocabulary: int, length: int, *, without: AbstractSet[int] = frozenset()
) -> tuple[list[int], list[int]]:
    """Returns two sequences that differ at every position; does not use the global generator."""
    allowed = torch.tensor([token for token in range(vocabulary) if token not in without])
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(len(allowed), (length,), generator=generator)
    y = (x + 1 + torch.randint(len(allowed) - 1, (length,), generator=generator)) % len(allowed)
    return allowed[x].tolist(), allowed[y].tolist()


def make_segment(vocabulary: int, length: int, adapter: InputAdapter, *, seed: int, images: bool) -> Segment:
    """
    Makes one segment of a given length; does not use the global generator.

    Args:
        vocabulary (`int`):
            Token ids are drawn below it.
        length (`int`):
            Tokens of the segment, with those of its images.
        adapter (`InputAdapter`):
            Its media tokens are not drawn.
        seed (`int`):
            Of the tokens and the pixels.
        images (`bool`):
            Whether to add images, if the model reads them and they take at most half of the segment.

    Returns:
        `Segment`: the segment.
    """
    shown = _images(seed) if images and adapter.image_token_id is not None else ()
    taken = sum(adapter.image_tokens(image) for image in shown)
    if 2 * taken > length:
        shown, taken = (), 0
    text = length - taken
    allowed = torch.tensor([token for token in range(vocabulary) if token not in adapter.media_token_ids])
    drawn = torch.randint(len(allowed), (text,), generator=torch.Generator().manual_seed(seed))
    return _segment(allowed[drawn].tolist(), shown, adapter)


def packed_inputs(segments: Sequence[Segment], adapter: InputAdapter) -> Inputs:
    """Returns the arguments of a training forward, with the logits of every position."""
    pack = pack_of(segments)
    every_position = torch.arange(pack.layout.total)
    media = adapter.media([image for segment in segments for image in segment.images])
    return {**forward_inputs(pack, adapter), **media, "logits_to_keep": every_position}


def plain_inputs(segments: Sequence[Segment], adapter: InputAdapter) -> Inputs:
    """Returns the arguments of a plain forward with one segment a row, as the model's own documentation has it."""
    rows = [segment.input_ids for segment in segments]
    return {
        "input_ids": torch.stack(rows),
        "use_cache": False,
        **adapter.padded(rows, width=len(rows[0]), left=False),
        **adapter.media([image for segment in segments for image in segment.images]),
    }


def _images(seed: int) -> tuple[Image, ...]:
    draw = np.random.default_rng(seed)
    return tuple(
        Image(source=draw.integers(0, 256, (height, width, 3), dtype=np.uint8), height=height, width=width)
        for height, width in SIZES
    )


def _segment(ids: list[int], images: tuple[Image, ...], adapter: InputAdapter, *, shift: int = 0) -> Segment:
    """Puts the images between the tokens, `shift` tokens later, each with tokens of text before and after it."""
    for place, _ in zip((len(ids) // 3 + shift, 2 * len(ids) // 3 + 1 + shift), images, strict=False):
        assert adapter.image_token_id is not None
        ids = [*ids[:place], adapter.image_token_id, *ids[place:]]
    expanded = adapter.expand(ids, images)
    return Segment.from_lists(expanded, expanded, [0.0] * len(expanded), images=images, sample_id="<probe>")
