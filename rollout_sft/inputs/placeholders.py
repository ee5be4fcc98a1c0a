"""Finds, makes and undoes the tokens that stand for images in a sequence of token ids."""

from __future__ import annotations

from collections.abc import Sequence


def expand(prompt_ids: Sequence[int], runs: Sequence[Sequence[int]], image_token_id: int) -> list[int]:
    """
    Replaces each placeholder by the tokens of its image.

    Args:
        prompt_ids (`Sequence[int]`):
            One `image_token_id` for each image.
        runs (`Sequence[Sequence[int]]`):
            The tokens that the model reads for each image.
        image_token_id (`int`):
            The placeholder; a run may hold further tokens, such as the end of a line.

    Returns:
        `list[int]`: the prompt that the model reads.

    Raises:
        `ValueError`: there are more or fewer placeholders than images.
    """
    ids = list(prompt_ids)
    check_places(ids.count(image_token_id), len(runs), image_token_id)
    expanded: list[int] = []
    start = 0
    for run in runs:
        place = ids.index(image_token_id, start)
        expanded += ids[start:place]
        expanded += run
        start = place + 1
    return expanded + ids[start:]


def check_places(places: int, images: int, image_token: int | str) -> None:
    """Raises `ValueError` unless a prompt has one place for each image."""
    if places != images:
        raise ValueError(
            f"the prompt has {places} places for images (token {image_token}) and {images} images; give one image for "
            "each place, in order."
        )


def find(
    token_ids: Sequence[int], runs: Sequence[Sequence[int]], image_token_id: int, *, where: str
) -> list[tuple[int, int]]:
    """
    Finds where the tokens of each image begin and end.

    Args:
        token_ids (`Sequence[int]`):
            A whole segment or prompt.
        runs (`Sequence[Sequence[int]]`):
            The tokens that the model reads for each image, in order.
        image_token_id (`int`):
            The token of which every run holds at least one.
        where (`str`):
            What the ids are, for messages.

    Returns:
        `list[tuple[int, int]]`: begin and end of each run.

    Raises:
        `ValueError`: a run is missing, or an image token belongs to no image.
    """
    ids = list(token_ids)
    found: list[tuple[int, int]] = []
    start = 0
    for number, run in enumerate(runs):
        run = list(run)
        if image_token_id not in ids[start:]:
            raise _mismatch(where, ids, runs, image_token_id, f"there are none for image {number}")
        begin = ids.index(image_token_id, start) - run.index(image_token_id)
        if begin < start or ids[begin : begin + len(run)] != run:
            raise _mismatch(where, ids, runs, image_token_id, f"image {number} needs {_describe(run)} from {begin} on")
        start = begin + len(run)
        found.append((begin, start))
    if image_token_id in ids[start:]:
        extra = ids.index(image_token_id, start)
        raise _mismatch(where, ids, runs, image_token_id, f"the one at position {extra} belongs to no image")
    return found


def collapse(token_ids: Sequence[int], runs: Sequence[Sequence[int]], image_token_id: int, *, where: str) -> list[int]:
    """Undoes [`expand`]; see [`find`] for the arguments and errors."""
    collapsed: list[int] = []
    start = 0
    for begin, end in find(token_ids, runs, image_token_id, where=where):
        collapsed += [*token_ids[start:begin], image_token_id]
        start = end
    return collapsed + list(token_ids[start:])


def _describe(run: list[int]) -> str:
    return f"{len(run)} of them" if len(set(run)) == 1 else f"a run of {len(run)} that begins {run[:6]}"


def _mismatch(where: str, ids: list[int], runs: Sequence[Sequence[int]], image_token_id: int, what: str) -> ValueError:
    needed = sum(list(run).count(image_token_id) for run in runs)
    return ValueError(
        f"{where}: {ids.count(image_token_id)} image tokens (token {image_token_id}) and {len(runs)} images, which "
        f"need {needed}; {what}. Keep the prompt's tokens as they are and in order, and let no response hold an image "
        "token."
    )
