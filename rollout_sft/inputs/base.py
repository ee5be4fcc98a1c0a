"""Says what an input adapter gives: all that a segment needs besides its token ids, for one kind of model.

Positions are made per segment on the CPU, before packing, from the sizes of the images alone. Pixels are decoded and
preprocessed late, for all images of one forward together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from packsched import Pack
from rollout_sft.inputs.images import Image
from rollout_sft.inputs.segment import Segment


class InputAdapter(Protocol):
    """
    Makes positions and media for one kind of model; for text it adds nothing.

    Attributes:
        media_token_ids (`frozenset[int]`):
            Tokens that stand for media. No rollout may generate them; empty for text.
        image_token_id (`int`, *optional*):
            The placeholder of an image in a prompt; None for text.
    """

    media_token_ids: frozenset[int]
    image_token_id: int | None

    def image_tokens(self, image: Image) -> int:
        """Returns how many tokens the model reads for the image, from its size alone."""
        ...

    def seen_size(self, image: Image) -> tuple[int, int]:
        """Returns the height and width in pixels that the model sees, after the image processor's resizing."""
        ...

    def expand(self, prompt_ids: Sequence[int], images: Sequence[Image]) -> list[int]:
        """
        Replaces each image's one placeholder by the tokens that the model reads for it.

        Raises:
            `ValueError`: there are more or fewer placeholders than images.
        """
        ...

    def collapse(self, prompt_ids: Sequence[int], images: Sequence[Image]) -> list[int]:
        """
        Undoes [`expand`]: leaves one placeholder for each image, as vLLM takes a prompt.

        Raises:
            `ValueError`: the prompt does not have exactly the tokens of its images.
        """
        ...

    def check(self, segment: Segment) -> None:
        """Raises `ValueError` unless the segment has exactly the media tokens that its images need, and names it."""
        ...

    def dummy(self) -> Segment | None:
        """
        Returns the smallest segment with an image that supervises nothing, or None for text.

        A forward of a model with a vision tower always holds an image: a pack without one gets this segment, and the
        plan reserves its tokens.
        """
        ...

    def packed(self, pack: Pack[Segment]) -> dict[str, Any]:
        """Returns the arguments of a packed forward that replace or join those for text, without pixels: positions."""
        ...

    def padded(self, rows: Sequence[Tensor], *, width: int, left: bool) -> dict[str, Any]:
        """
        Returns the arguments of a plain forward, or of `generate`, besides ids and mask, without pixels: token types.

        Args:
            rows (`Sequence[Tensor]`):
                The token ids of each row, without padding. For `generate` these are the prompts.
            width (`int`):
                Tokens of each row with padding.
            left (`bool`):
                Whether the rows are padded on the left, as for `generate`.
        """
        ...

    def media(self, images: Sequence[Image]) -> dict[str, Any]:
        """
        Decodes and preprocesses all images of one forward; slow.

        Args:
            images (`Sequence[Image]`):
                The images of all segments or rows, in the order of their tokens.

        Returns:
            `dict`: tensors on the CPU, such as `pixel_values`; `{}` without images.
        """
        ...
