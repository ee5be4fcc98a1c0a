"""
Loads the user's data: a file or a `datasets` data set with a prompt and the truth in each record.

A record is `{"messages": [...] | "prompt": str, "objects": [{"desc": str, "bbox_2d": [x1, y1, x2, y2]},
...]}`, with an optional `id`, `images` for an image model, and any further columns. A target builder other than
`objects` needs no `objects`. Loading checks every record and skips none; a prompt is encoded when its sample is read,
and pixels are decoded when its pack is collated.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch.utils.data import Dataset

from rollout_sft.config.sections import BoxUnits
from rollout_sft.config.shorten import cut, shorten
from rollout_sft.data.boxes import to_norm1000
from rollout_sft.data.images import read_images
from rollout_sft.data.prompts import Prompts
from rollout_sft.data.sources import check_sources, folder_of, names_of, read_rows
from rollout_sft.data.truth import read_truth
from rollout_sft.inputs.base import InputAdapter

MAX_ID = 200
"""Limits ids, which appear in log lines and messages."""
_PROMPTS = ("messages", "prompt")


class RecordsDataset(Dataset[dict[str, Any]]):
    """
    Gives checked records as samples: `{"id": str, "prompt_ids": list[int], ...}`, with all further columns unchanged.

    Samples of an image model have `images`, a tuple of [`~rollout_sft.inputs.images.Image`], and `prompt_ids` hold all
    tokens that the model reads for them. [`load_records`] makes it.

    Args:
        records (`list[dict]`):
            Checked records, each with an `id`.
        prompts ([`~rollout_sft.data.prompts.Prompts`]):
            Encodes the prompts.
    """

    def __init__(self, records: list[dict[str, Any]], prompts: Prompts):
        self.records = records
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        further = {key: value for key, value in record.items() if key not in _PROMPTS}
        return {**further, "prompt_ids": self.prompts.encode(record)}


def load_records(
    path_or_name: str | Sequence[str],
    tokenizer: Any,
    *,
    split: str = "train",
    name: str | None = None,
    limit: int | None = None,
    require_objects: bool = True,
    adapter: InputAdapter | None = None,
    longest_prompt: int | None = None,
    boxes: BoxUnits = "as_given",
    chat_template_kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> RecordsDataset:
    """
    Loads and checks records.

    Args:
        path_or_name (`str` or `Sequence[str]`):
            A .jsonl, .json, .csv or .parquet file, a name that `datasets.load_dataset` takes, or several of them, which
            follow each other ([`~rollout_sft.data.sources`]).
        tokenizer (`PreTrainedTokenizerBase`):
            Encodes the prompts: `messages` with its chat template and the generation prompt, `prompt`
            unchanged.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a `datasets` data set; a file has none.
        name (`str`, *optional*):
            Configuration name of a `datasets` data set.
        limit (`int`, *optional*):
            Loads only this many records, from the start.
        require_objects (`bool`, *optional*, defaults to `True`):
            Whether each record has to hold valid `objects`; false for target builders that read other columns.
        adapter (`InputAdapter`, *optional*):
            Of the model; without one, or with that of a text model, records with images are refused.
        longest_prompt (`int`, *optional*):
            The most tokens of a prompt with images, those of the images included.
        boxes (`str`, *optional*, defaults to `"as_given"`):
            `norm1000` turns boxes in pixels into thousandths of the image; see [`~rollout_sft.data.boxes`].
        chat_template_kwargs (`Mapping[str, Any]`, *optional*):
            Further arguments of the chat template, such as `{"enable_thinking": False}`.

    Returns:
        `RecordsDataset`: a map-style data set of samples.

    Raises:
        `ValueError`: a record is malformed, an image is missing, damaged or too large, the images do not fit the places
            in the prompt, there are no records, the data has messages and the tokenizer no chat template, or a prompt
            begins or ends with tokens that it should not have ([`~rollout_sft.data.prompt_edges`]); the message names
            file and line (or data set and row) and the field.
        `FileNotFoundError`: the file does not exist.
    """
    check_sources(path_or_name)
    prompts = Prompts(tokenizer, adapter, chat_template_kwargs=chat_template_kwargs, answer_first=require_objects)
    rows = (
        (place, row, folder_of(one))
        for one in names_of(path_or_name)
        for place, row in read_rows(one, split=split, name=name)
    )
    records = []
    for place, row, folder in itertools.islice(rows, limit):
        record = _check(row, place, require_objects)
        short = cut(place, 200)
        record |= prompts.normalise(row, short)
        if prompts.reads_images:
            record["images"] = read_images(row.get("images", []), short, folder)
            prompts.check(record, short, longest=longest_prompt)
        elif row.get("images"):
            raise ValueError(
                f"{short}: images is {shorten(row['images'])}, but the model reads text alone; train an image model "
                "(docs/images.md), or leave the images out."
            )
        if boxes == "norm1000":
            record["objects"] = _norm1000(record, short)
        records.append(record)
    if not records:
        within = "" if limit is None else f" within the limit of {limit}"
        sources = cut(", ".join(names_of(path_or_name)), 200)
        raise ValueError(f"{sources}: no records{within}; training needs at least one.")
    return RecordsDataset(records, prompts)


def _check(row: Any, whole_place: str, require_objects: bool) -> dict[str, Any]:
    place = cut(whole_place, 200)
    if not isinstance(row, Mapping):
        raise ValueError(f"{place}: a {type(row).__name__}; give an object with a prompt and objects.")
    given = [key for key in _PROMPTS if key in row]
    if len(given) != 1:
        found = "both" if given else "neither"
        raise ValueError(f"{place}: {found} of messages and prompt; give one (keys: {shorten(sorted(row))}).")
    if "prompt_ids" in row:
        raise ValueError(f"{place}: prompt_ids is given, but it is made from {given[0]}; rename or remove that column.")
    if require_objects and "objects" not in row:
        raise ValueError(
            f"{place}: objects is missing; give the list of true objects (keys: {shorten(sorted(row))}), or name a "
            "rollout_matching.target_builder that reads other columns."
        )
    if require_objects:
        read_truth(row["objects"], place)
    if "id" in row and (not isinstance(row["id"], str | int) or not 1 <= len(str(row["id"])) <= MAX_ID):
        raise ValueError(f"{place}: id is {shorten(row['id'])}; give a text or an integer of 1 to {MAX_ID} characters.")
    return {**row, "id": str(row.get("id", whole_place))}


def _norm1000(record: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    images = tuple(record.get("images") or ())
    if len(images) != 1:
        raise ValueError(
            f"{place}: data.boxes is norm1000, which takes the size of the record's one image, and there are "
            f"{len(images)}; turn the boxes yourself and give data.boxes as_given."
        )
    read_truth(record.get("objects"), place)
    return to_norm1000(record["objects"], images[0], place)
