"""Weights over the network: a process group of their own, in which rank 0 is the trainer and the others are a server's
workers.

Tensors travel in buckets, as one flat buffer of bytes behind a header that names them; the receiver needs to know
nothing beforehand. Both sides import this module, and neither the default process group nor vLLM takes part.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import Tensor

_BUCKET_BYTES = 256 << 20
"""What is sent at once, unless a single tensor is larger."""

_ALIGNMENT = 16
"""Bytes at whose multiples tensors begin in a bucket, so that any type can be viewed there."""

_store: Any = dist.TCPStore  # type: ignore[attr-defined]


class WeightStream:
    """
    One end of a stream.

    Args:
        backend (`str`):
            `nccl` from device to device, `gloo` over host memory.
        store (`dist.Store`):
            Where the ends meet; the trainer's end made it ([`open_store`]).
        rank (`int`):
            0 for the trainer, from 1 on for the workers.
        size (`int`):
            Workers and trainer together.
        seconds (`float`):
            After this long a broadcast, or waiting for another end, fails.
    """

    def __init__(self, backend: Literal["nccl", "gloo"], store: Any, rank: int, size: int, *, seconds: float):
        self._store = store  # the trainer's end serves it
        limit = timedelta(seconds=seconds)
        self._group: Any
        if backend == "nccl":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = limit
            self._device = torch.device("cuda", torch.cuda.current_device())
            self._group = dist.ProcessGroupNCCL(store, rank, size, options)
        else:
            self._device = torch.device("cpu")
            self._group = dist.ProcessGroupGloo(store, rank, size, limit)

    def put(self, buffer: Tensor) -> Any:
        """Begins to broadcast a buffer; `.wait()` on what it returns ends it, or raises what went wrong."""
        return self._group.broadcast(buffer.to(self._device), 0)

    def receive(self) -> Iterator[tuple[str, Tensor]]:
        """
        Yields what the trainer sends, in its order.

        Returns:
            `Iterator[tuple[str, Tensor]]`: names and tensors, on the device of the stream.
        """
        while True:
            header_bytes, buffer_bytes = self._get(2, torch.int64).tolist()
            if not header_bytes:
                return
            header = json.loads(bytes(self._get(header_bytes, torch.uint8).tolist()))
            buffer = self._get(buffer_bytes, torch.uint8)
            for name, dtype, shape, start, end in header:
                yield name, buffer[start:end].view(getattr(torch, dtype)).view(shape)

    def _get(self, count: int, dtype: torch.dtype) -> Tensor:
        buffer = torch.empty(count, dtype=dtype, device=self._device)
        self._group.broadcast(buffer, 0).wait()
        return buffer


def send(
    streams: Sequence[WeightStream], tensors: Iterable[tuple[str, Tensor]], *, bucket_bytes: int | None = None
) -> tuple[int, dict[WeightStream, Exception]]:
    """
    Sends tensors down several streams at once. A stream that breaks is left alone from then on; the others go on.

    Args:
        streams (`Sequence[WeightStream]`):
            The trainer's ends.
        tensors (`Iterable[tuple[str, Tensor]]`):
            Names and whole tensors; iterated once, whatever breaks.
        bucket_bytes (`int`, *optional*):
            About how much is sent at once.

    Returns:
        `tuple[int, dict[WeightStream, Exception]]`: how many tensors were sent, and what broke which stream.
    """
    broken: dict[WeightStream, Exception] = {}
    sent = 0

    def broadcast(buffer: Tensor) -> None:
        under_way = []
        for stream in streams:
            if stream not in broken:
                try:
                    under_way.append((stream, stream.put(buffer)))
                except RuntimeError as error:
                    broken[stream] = error
        for stream, work in under_way:
            try:
                work.wait()
            except RuntimeError as error:
                broken[stream] = error

    try:
        for bucket in _buckets(tensors, bucket_bytes or _BUCKET_BYTES):
            header, buffer = _pack(bucket)
            broadcast(torch.tensor([len(header), len(buffer)]))
            broadcast(torch.frombuffer(bytearray(header), dtype=torch.uint8))
            broadcast(buffer)
            sent += len(bucket)
    finally:  # a receiver that was told too little knows from the number
        broadcast(torch.zeros(2, dtype=torch.int64))
    return sent, broken


def _buckets(tensors: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[list[tuple[str, Tensor]]]:
    bucket: list[tuple[str, Tensor]] = []
    held = 0
    for name, tensor in tensors:
        if bucket and held + tensor.nbytes > limit:
            yield bucket
            bucket, held = [], 0
        bucket.append((name, tensor))
        held += tensor.nbytes
    if bucket:
        yield bucket


def _pack(bucket: list[tuple[str, Tensor]]) -> tuple[bytes, Tensor]:
    """The header, and the tensors one behind the other."""
    entries, start = [], 0
    for name, tensor in bucket:
        entries.append(
            (name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), start, start + tensor.nbytes)
        )
        start += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    buffer = torch.empty(start, dtype=torch.uint8, device=bucket[0][1].device)
    for (_, _, _, begin, end), (_, tensor) in zip(entries, bucket, strict=True):
        buffer[begin:end].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    return json.dumps(entries).encode(), buffer


def open_store(seconds: float) -> Any:
    """The trainer's meeting point for one stream, on a free `port` of this machine."""
    limit = timedelta(seconds=seconds)
    return _store("0.0.0.0", 0, is_master=True, wait_for_workers=False, timeout=limit)


def join_store(host: str, port: int, seconds: float) -> Any:
    """A worker's way to [`open_store`]."""
    return _store(host, port, is_master=False, timeout=timedelta(seconds=seconds))


def own_address(url: str) -> str:
    """The address of this machine that the server at `url` reaches it under."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with socket.create_connection((parts.hostname, port), timeout=10) as connection:
        return str(connection.getsockname()[0])
