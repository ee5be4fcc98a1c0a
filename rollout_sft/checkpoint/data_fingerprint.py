"""Describes the training data, so that a resumed run notices that they have changed.

    a file or a data set of `datasets`    every record, and the prompts of 16 samples
    any other map-style data set          length and 16 samples, whole, if two of them are the same when read again
    a stream                              nothing: reading it would use it up

Records are in memory; their checksum takes about a third of the time that parsing them took. Of images the place, the
size and encoded bytes in a record count; files of images are not read again.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch

from rollout_sft.data.records import RecordsDataset
from rollout_sft.inputs.images import Image

STREAM = "a stream"
"""What is known of data without a length."""
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
        return {"data.train": STREAM}
    number = len(dataset)
    indices = sorted({i * (number - 1) // (_SAMPLES - 1) for i in range(_SAMPLES)})
    once = _of_samples(dataset, indices, seed=0)
    again = _of_samples(dataset, indices[:: max(1, len(indices) - 1)], seed=1)
    same = (
        f"{zlib.crc32(repr(once).encode()):08x}" if again.items() <= once.items() else "which differ at every reading"
    )
    found = {"data.train": f"{len(dataset)} samples, {same}"}
    if isinstance(dataset, RecordsDataset):
        digest = 0
        for record in dataset.records:
            digest = zlib.crc32(json.dumps(record, sort_keys=True, default=_plain).encode(), digest)
        found["data.train.records"] = f"{len(dataset)} records, {digest:08x}"
    return found


def _of_samples(dataset: Any, indices: Sequence[int], *, seed: int) -> dict[int, int]:
    """Returns a checksum of each of these samples."""
    found = {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # that of the CPU alone
        for index in indices:
            sample = dataset[index]
            if isinstance(dataset, RecordsDataset):
                sample = {"id": sample["id"], "prompt_ids": sample["prompt_ids"]}  # the rest is in its record
            columns = None
            if isinstance(sample, Mapping):
                columns = [[str(name), sample[name]] for name in sorted(sample, key=str)]
            found[index] = zlib.crc32(json.dumps(columns, skipkeys=True, default=_plain).encode())
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Image):
        return [value.source, value.height, value.width, value.digest]
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist() if value.dtype.hasobject else [str(value.dtype), value.shape, zlib.crc32(value.tobytes())]
    if isinstance(value, bytes):
        return zlib.crc32(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {spec.name: getattr(value, spec.name) for spec in fields(value)}
    return type(value).__name__  # printed it may hold an address in memory
