"""Says what an input adapter gives: all that a segment needs besides its token ids, for one kind of model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

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

    def collapse(self, prompt_ids: Sequence[int]) -> list[int]:
        """Undoes [`expand`]: leaves one placeholder for each image, as vLLM takes a prompt."""
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
        """Returns what a packed forward needs besides ids and `cu_seq_lens`: positions, and media in token order."""
        ...

    def padded(self, rows: Sequence[Segment], *, width: int, left: bool) -> dict[str, Any]:
        """Returns what a padded rectangle needs besides the ids and the mask, padded on the left for `generate`."""
        ...
