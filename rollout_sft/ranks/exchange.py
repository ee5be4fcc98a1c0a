"""Sends dataclass objects between ranks: one message for each pair of ranks, whose sizes all of them know.

An object becomes a header (JSON: its fields, and for every tensor, array and bytes its kind, shape and place) and the
bytes of these. The receiver rebuilds the classes that the fields of the expected class name, and no others, so a
message cannot run code. [`Parcel`] knows its size before it is sent: ranks share the sizes in a collective that they
need anyway, and none has to ask how much will come.

    Parcel.of(segment)  ->  sizes in `together`  ->  who sends what is planned on every rank  ->  exchange
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import Any, TypeVar, get_args, get_type_hints

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from rollout_sft.ranks.distributed import entangled

T = TypeVar("T")

_WORD = 8
"""Every part of a message starts at a multiple of this many bytes, as the widest element needs."""
_TENSOR, _ARRAY, _BYTES, _OBJECT, _TUPLE, _MAPPING = "tensor", "array", "bytes", "object", "tuple", "mapping"


@dataclass(frozen=True)
class Parcel:
    """
    Holds an object as it is sent; its bytes are views and take no memory of their own.

    Args:
        header (`bytes`):
            Says how the object is made from the parts.
        parts (`tuple[memoryview, ...]`):
            The bytes of its tensors, arrays and byte strings.
    """

    header: bytes
    parts: tuple[memoryview, ...]

    @classmethod
    def of(cls, value: Any) -> Parcel:
        """
        Prepares a dataclass object. Tensors are copied from a device first.

        Raises:
            `TypeError`: a field holds something that cannot be sent; the message names its type.
        """
        parts: list[memoryview] = []
        header = json.dumps(_describe(value, parts), separators=(",", ":")).encode()
        return cls(header, tuple(parts))

    @property
    def size(self) -> int:
        """Returns the bytes that the parcel takes in a message."""
        return _WORD + _padded(len(self.header)) + sum(_padded(part.nbytes) for part in self.parts)

    def _write(self, message: memoryview) -> None:
        message[:_WORD] = len(self.header).to_bytes(_WORD, "little")
        at = _WORD
        for part in (memoryview(self.header), *self.parts):
            message[at : at + part.nbytes] = part
            at += _padded(part.nbytes)


def exchange(
    kind: type[T],
    outgoing: Mapping[int, Sequence[Parcel]],
    sizes: Mapping[int, Sequence[int]],
) -> dict[int, list[T]]:
    """
    Sends parcels to other ranks and receives theirs; every rank calls it at the same point.

    A rank that fails in it, or ends, breaks the connections of those that wait for it; they raise as in [`entangled`].

    Args:
        kind (`type`):
            The dataclass of the objects.
        outgoing (`Mapping[int, Sequence[Parcel]]`):
            For each rank that gets objects, the parcels in order.
        sizes (`Mapping[int, Sequence[int]]`):
            For each rank that sends objects to this one, the sizes of its parcels in order.

    Returns:
        `dict[int, list[T]]`: for each rank in `sizes` its objects, on the CPU.
    """
    with entangled():
        device = torch.device("cpu") if PartialState().backend == "gloo" else PartialState().device
        sent = {rank: _message(parcels).to(device) for rank, parcels in outgoing.items()}
        received = {rank: torch.empty(sum(sizes[rank]), dtype=torch.uint8, device=device) for rank in sizes}
        operations = [dist.P2POp(dist.irecv, message, rank) for rank, message in sorted(received.items())]
        operations += [dist.P2POp(dist.isend, message, rank) for rank, message in sorted(sent.items())]
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()
        return {rank: list(_unpack(kind, message.cpu(), sizes[rank])) for rank, message in received.items()}


def _message(parcels: Sequence[Parcel]) -> Tensor:
    message = torch.zeros(sum(parcel.size for parcel in parcels), dtype=torch.uint8)
    view = message.numpy().data
    for parcel, (start, end) in zip(parcels, pairwise(accumulate((p.size for p in parcels), initial=0)), strict=True):
        parcel._write(view[start:end])
    return message


def _unpack(kind: Any, message: Tensor, sizes: Sequence[int]) -> Iterator[Any]:
    classes = _classes(kind)
    for start, end in pairwise(accumulate(sizes, initial=0)):
        parcel = message[start:end]
        length = int.from_bytes(parcel[:_WORD].numpy().tobytes(), "little")
        header = json.loads(parcel[_WORD : _WORD + length].numpy().tobytes())
        yield _rebuild(header, parcel[_WORD + _padded(length) :], classes)


def _padded(size: int) -> int:
    return -(-size // _WORD) * _WORD


def _describe(value: Any, parts: list[memoryview]) -> Any:
    """Returns the value's header: itself where JSON holds it, else a list that begins with what it is."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        found = value.detach().cpu().contiguous()
        return [_TENSOR, str(found.dtype).removeprefix("torch."), list(found.shape), _add(found.view(-1), parts)]
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return [_ARRAY, value.dtype.str, list(value.shape), _add(np.ascontiguousarray(value).reshape(-1), parts)]
    if isinstance(value, bytes):
        return [_BYTES, _add(np.frombuffer(value, np.uint8), parts)]
    if is_dataclass(value) and not isinstance(value, type):
        held = {spec.name: _describe(getattr(value, spec.name), parts) for spec in fields(value) if spec.init}
        return [_OBJECT, type(value).__qualname__, held]
    if type(value) in (list, tuple):
        return [_TUPLE, type(value) is tuple, [_describe(one, parts) for one in value]]
    if type(value) is dict and all(type(key) is str for key in value):
        return [_MAPPING, {key: _describe(one, parts) for key, one in value.items()}]
    raise TypeError(
        f"a {type(value).__name__} cannot be sent to another rank; a segment holds tensors, numpy arrays, bytes, "
        "numbers, texts, dataclasses that its annotations name, and lists, tuples and mappings of these."
    )


def _add(flat: Tensor | np.ndarray, parts: list[memoryview]) -> list[int]:
    """Appends the bytes to `parts`; returns where they begin, from the end of the header, and how many they are."""
    raw = flat.view(torch.uint8).numpy() if isinstance(flat, Tensor) else flat.view(np.uint8)
    start = sum(_padded(part.nbytes) for part in parts)
    parts.append(raw.data)
    return [start, raw.nbytes]


def _rebuild(header: Any, body: Tensor, classes: Mapping[str, type]) -> Any:
    if not isinstance(header, list):
        return header
    what, *rest = header
    if what in (_TENSOR, _ARRAY, _BYTES):
        start, size = rest[-1]
        raw = body[start : start + size]
        if what == _TENSOR:
            return raw.clone().view(getattr(torch, rest[0])).reshape(rest[1])
        if what == _ARRAY:
            return raw.numpy().copy().view(np.dtype(rest[0])).reshape(rest[1])
        return raw.numpy().tobytes()
    if what == _OBJECT:
        return classes[rest[0]](**{name: _rebuild(one, body, classes) for name, one in rest[1].items()})
    if what == _TUPLE:
        held = [_rebuild(one, body, classes) for one in rest[1]]
        return tuple(held) if rest[0] else held
    assert what == _MAPPING, what
    return {name: _rebuild(one, body, classes) for name, one in rest[0].items()}


@cache
def _classes(kind: type) -> dict[str, type]:
    """Returns the dataclass and those that its fields' annotations name, at any depth, by qualified name."""
    found: dict[str, type] = {}
    waiting: list[Any] = [kind]
    while waiting:
        hint = waiting.pop()
        waiting += get_args(hint)
        if isinstance(hint, type) and is_dataclass(hint) and found.setdefault(hint.__qualname__, hint) is hint:
            hints = get_type_hints(hint)
            waiting += [hints[spec.name] for spec in fields(hint) if hints[spec.name] not in found.values()]
    return found
