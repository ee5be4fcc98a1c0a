"""Says how internvl, llava_onevision, smolvlm and mistral3 cut an image into tokens, from its size alone.

Each function repeats what the model's processor does with the image processor's sizes; the model itself refuses a
forward whose image tokens do not match. The order of a run's tokens is the processor's, with the tokens around it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from transformers.image_processing_utils import select_best_resolution
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from rollout_sft.inputs.vision import DummyImage, VisionInputs


def internvl(config: Any, tokenizer: Any, image_processor: Any) -> VisionInputs:
    """Cuts an image into tiles of one size and adds a small one of the whole; each tile has equally many tokens."""
    size, image_token = image_processor.size, config.image_token_id
    tile, most = (size["height"], size["width"]), image_processor.max_patches
    start, end = (token_id(tokenizer, text) for text in ("<img>", "</img>"))

    def tiles(height: int, width: int) -> tuple[int, int]:
        columns, rows = get_optimal_tiled_canvas((height, width), tile, image_processor.min_patches, most)
        return (rows, columns) if most > 1 else (1, 1)

    def run(height: int, width: int) -> list[int]:
        rows, columns = tiles(height, width)
        count = 1 if rows * columns == 1 else rows * columns + 1
        return [start, *[image_token] * (config.image_seq_length * count), end]

    def seen(height: int, width: int) -> tuple[int, int]:
        rows, columns = tiles(height, width)
        return rows * tile[0], columns * tile[1]

    return _Tiles(
        image_processor,
        image_token_id=image_token,
        media_token_ids=_media(config),
        run=run,
        seen=seen,
        dummy=DummyImage(
            size=tile,
            run=[start, *[image_token] * config.image_seq_length, end],
            options={"crop_to_patches": False},
        ),
        options={"crop_to_patches": True},
    )


class _Tiles(VisionInputs):
    def _preprocess(self, pixels: list[Any], options: Any) -> dict[str, Any]:
        media = super()._preprocess(pixels, options)
        del media["num_patches"]
        return media


def llava_onevision(config: Any, tokenizer: Any, image_processor: Any) -> VisionInputs:
    """
    Fits an image into the best of a list of resolutions, in tiles without their padding, and adds the whole.

    Several images of one sample are each cut as an image that is alone.
    """
    image_token, side = config.image_token_id, config.vision_config.image_size
    if config.vision_feature_select_strategy != "full":
        raise ValueError(
            f"llava_onevision with vision_feature_select_strategy {config.vision_feature_select_strategy!r} is "
            "refused: the number of its image tokens was only compared for 'full'."
        )
    across = side // config.vision_config.patch_size
    most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    resolutions = image_processor.image_grid_pinpoints

    def run(height: int, width: int) -> list[int]:
        best = select_best_resolution((height, width), resolutions)
        rows, columns = (across * (target // side) for target in best)
        if width / height > columns / rows:
            rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
        ratio = math.sqrt(rows * columns / (most * across**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
        return [image_token] * (across**2 + rows * (columns + 1))

    def seen(height: int, width: int) -> tuple[int, int]:
        target_height, target_width = select_best_resolution((height, width), resolutions)
        if target_width / width < target_height / height:
            return min(math.ceil(height * target_width / width), target_height), target_width
        return target_height, min(math.ceil(width * target_height / height), target_width)

    smallest = min(map(tuple, resolutions), key=lambda size: len(run(*size)))
    return VisionInputs(
        image_processor,
        image_token_id=image_token,
        media_token_ids=_media(config),
        run=run,
        seen=seen,
        dummy=DummyImage(size=smallest, run=run(*smallest)),
    )


def smolvlm(config: Any, tokenizer: Any, image_processor: Any) -> VisionInputs:
    """Enlarges an image, cuts it into frames of one size, and adds one of the whole; texts name rows and columns."""
    frame, image_token = image_processor.max_image_size["longest_edge"], config.image_token_id
    across = config.vision_config.image_size // config.vision_config.patch_size
    tokens = f"{tokenizer.convert_ids_to_tokens(image_token)}" * (across**2 // config.scale_factor**2)
    fake, whole = "<fake_token_around_image>", "<global-img>"
    for text in (fake, whole):
        token_id(tokenizer, text)

    def seen(height: int, width: int) -> tuple[int, int]:
        if not image_processor.do_image_splitting:
            return frame, frame
        height, width = _enlarged(height, width, image_processor.size["longest_edge"])
        aspect = width / height
        if width >= height:
            width = math.ceil(width / frame) * frame
            return math.ceil(int(width / aspect) / frame) * frame, width
        height = math.ceil(height / frame) * frame
        return height, math.ceil(int(height * aspect) / frame) * frame

    @lru_cache(maxsize=256)
    def encoded(rows: int, columns: int) -> tuple[int, ...]:
        text = ""
        for row in range(rows):
            text += "".join(f"{fake}<row_{row + 1}_col_{column + 1}>{tokens}" for column in range(columns)) + "\n"
        text += ("\n" if rows else "") + f"{fake}{whole}{tokens}{fake}"
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    def run(height: int, width: int) -> list[int]:
        rows, columns = (side // frame for side in seen(height, width))
        return list(encoded(0, 0) if rows * columns == 1 else encoded(rows, columns))

    return _OneSample(
        image_processor,
        image_token_id=image_token,
        media_token_ids=_media(config),
        run=run,
        seen=seen,
        dummy=DummyImage(size=(frame, frame), run=list(encoded(0, 0)), options={"do_image_splitting": False}),
    )


def _enlarged(height: int, width: int, longest: int) -> tuple[int, int]:
    """Sets the longer side, and makes the other one an even number."""
    aspect = width / height
    if width >= height:
        other = int(longest / aspect)
        return max(1, other + other % 2), longest
    other = int(longest * aspect)
    return longest, max(1, other + other % 2)


class _OneSample(VisionInputs):
    """Hands all images over as those of one sample, whose frames join on the second dimension."""

    def _preprocess(self, pixels: list[Any], options: Any) -> dict[str, Any]:
        return dict(self._image_processor(images=[pixels], return_tensors="pt", **options))


def mistral3(config: Any, tokenizer: Any, image_processor: Any) -> VisionInputs:
    """Shrinks an image to the largest size allowed; each row of tokens ends with a token of its own."""
    image_token = config.image_token_id
    line, end = (token_id(tokenizer, text) for text in ("[IMG_BREAK]", "[IMG_END]"))
    token = config.vision_config.patch_size * config.spatial_merge_size
    longest = image_processor.size["longest_edge"]

    def seen(height: int, width: int) -> tuple[int, int]:
        ratio = max(height, width) / longest
        if ratio > 1:
            height, width = math.floor(height / ratio), math.floor(width / ratio)
        return ((height - 1) // token + 1) * token, ((width - 1) // token + 1) * token

    def run(height: int, width: int) -> list[int]:
        rows, columns = (side // token for side in seen(height, width))
        if rows * columns == 1:
            raise ValueError(
                f"an image of {height} x {width} pixels is one token for mistral3, and transformers fails on a forward "
                f"with one token; give an image of more than {token} pixels in height or width."
            )
        return [*([*[image_token] * columns, line] * rows)[:-1], end]

    smallest = (token, 2 * token)
    return VisionInputs(
        image_processor,
        image_token_id=image_token,
        media_token_ids=_media(config),
        run=run,
        seen=seen,
        dummy=DummyImage(size=smallest, run=run(*smallest), options={"patch_size": token}),
        options={"patch_size": token},
    )


def token_id(tokenizer: Any, text: str) -> int:
    """
    Returns the id of a token.

    Raises:
        `ValueError`: the tokenizer does not have it.
    """
    found: int | None = tokenizer.convert_tokens_to_ids(text)
    if found is None or found == tokenizer.unk_token_id:
        raise ValueError(
            f"the tokenizer has no token {text!r}, which this image model puts around its image tokens; use the "
            "tokenizer that belongs to the model."
        )
    return found


def _media(config: Any) -> frozenset[int]:
    ids = (config.image_token_id, getattr(config, "video_token_id", None))
    return frozenset(token for token in ids if token is not None)
