"""Describes the training data, so that a resumed run notices that they have changed.

    a file or a data set of `datasets`    every record, and the prompts of 16 samples
    any other map-style data set          length, ids and prompts of 16 samples
    a stream                              nothing: reading it would use it up

Records are in memory; their checksum takes about a third of the time that parsing them took. Of images the place, the
size and encoded bytes in a record count; files of images are not read again.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rollout_sft.data.records import RecordsDataset
from rollout_sft.inputs.images import Image

_SAMPLES = 16


def fingerprint(dataset: Any) -> dict[str, str]:
    """
    Describes a training data set.

    Args:
        dataset (`Dataset`):
            The training data; nothing is read from a stream.

    Returns:
        `dict[str, str]`: the same texts for the same data, by the key under which a checkpoint holds them:
        `data.train`, and `data.train.records` where every record was read.
    """
    if not hasattr(dataset, "__len__"):
        return {"data.train": "a stream"}
    found = {"data.train": f"{len(dataset)} samples, {_of_samples(dataset):08x}"}
    if isinstance(dataset, RecordsDataset):
        digest = 0
        for record in dataset.records:
            digest = zlib.crc32(json.dumps(record, sort_keys=True, default=_plain).encode(), digest)
        found["data.train.records"] = f"{len(dataset)} records, {digest:08x}"
    return found


def _of_samples(dataset: Any) -> int:
    digest = 0
    number = len(dataset)
    with torch.random.fork_rng(devices=[]):
        for index in sorted({i * (number - 1) // (_SAMPLES - 1) for i in range(_SAMPLES)}):
            sample = dataset[index]
            if isinstance(sample, Mapping):
                prompt = sample.get("prompt_ids")
                words = [str(sample.get("id")), *(() if prompt is None else map(str, prompt))]
                digest = zlib.crc32(" ".join(words).encode("utf-8", "replace"), digest)
    return digest


def _plain(value: Any) -> Any:
    if isinstance(value, Image):
        return [value.source, value.height, value.width]
    if isinstance(value, bytes | np.ndarray):
        return zlib.crc32(value.tobytes() if isinstance(value, np.ndarray) else value)
    return type(value).__name__  # printed it may hold an address in memory
