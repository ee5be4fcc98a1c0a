"""
Loads the user's data: a file or a `datasets` data set with a prompt and the truth in each record.

A record is `{"messages": [...] | "prompt": str, "objects": [{"desc": str, "bbox_2d": [x1, y1, x2, y2]},
...]}`, with an optional `id` and any further columns. A target builder other than `objects` needs no
`objects`. Loading checks every record and skips none; a prompt is encoded when its sample is read.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from rollout_sft.config.shorten import cut, shorten
from rollout_sft.data.sources import names_of, read_rows
from rollout_sft.data.truth import read_truth

MAX_ID = 200
"""Limits ids, which appear in log lines and messages."""
_PROMPTS = ("messages", "prompt")


class RecordsDataset(Dataset[dict[str, Any]]):
    """
    Gives checked records as samples: `{"id": str, "prompt_ids": list[int], ...}`, with all further columns unchanged.

    [`load_records`] makes it.

    Args:
        records (`list[dict]`):
            Checked records, each with an `id`.
        tokenizer (`PreTrainedTokenizerBase`):
            Encodes the prompts.
    """

    def __init__(self, records: list[dict[str, Any]], tokenizer: Any):
        self.records = records
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        if "messages" in record:
            prompt_ids = self.tokenizer.apply_chat_template(
                record["messages"], add_generation_prompt=True, tokenize=True, return_dict=False
            )
        else:
            prompt_ids = self.tokenizer(record["prompt"])["input_ids"]
        further = {key: value for key, value in record.items() if key not in _PROMPTS}
        return {**further, "prompt_ids": list(prompt_ids)}


def load_records(
    path_or_name: str | Sequence[str],
    tokenizer: Any,
    *,
    split: str = "train",
    name: str | None = None,
    limit: int | None = None,
    require_objects: bool = True,
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

    Returns:
        `RecordsDataset`: a map-style data set of samples.

    Raises:
        `ValueError`: a record is malformed, there are no records, or the data has messages and the tokenizer no
            chat template; the message names file and line (or data set and row) and the field.
        `FileNotFoundError`: the file does not exist.
    """
    rows = read_rows(path_or_name, split=split, name=name)
    records = [_check(row, place, tokenizer, require_objects) for place, row in itertools.islice(rows, limit)]
    if not records:
        within = "" if limit is None else f" within the limit of {limit}"
        sources = cut(", ".join(names_of(path_or_name)), 200)
        raise ValueError(f"{sources}: no records{within}; training needs at least one.")
    return RecordsDataset(records, tokenizer)


def _check(row: Any, whole_place: str, tokenizer: Any, require_objects: bool) -> dict[str, Any]:
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
    if given == ["messages"]:
        _check_messages(row["messages"], place, tokenizer)
    elif not isinstance(row["prompt"], str) or not row["prompt"]:
        raise ValueError(f"{place}: prompt is {shorten(row['prompt'])}; give a text that is not empty.")
    if require_objects:
        read_truth(row["objects"], place)
    if "id" in row and (not isinstance(row["id"], str | int) or not 1 <= len(str(row["id"])) <= MAX_ID):
        raise ValueError(f"{place}: id is {shorten(row['id'])}; give a text or an integer of 1 to {MAX_ID} characters.")
    return {**row, "id": str(row.get("id", whole_place))}


def _check_messages(messages: Any, place: str, tokenizer: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{place}: messages is {shorten(messages)}; give a list with at least one message.")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ValueError(f'{place}: messages[{i}] is {shorten(message)}; give {{"role": ..., "content": ...}}.')
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            f"{place}: the last message is the assistant's; leave it out, targets are built from the other columns."
        )
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"{place}: messages need a chat template and {type(tokenizer).__name__} has none; "
            "set tokenizer.chat_template, or give prompt instead."
        )
