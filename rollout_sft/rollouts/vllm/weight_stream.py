"""Sends weights over the network, in a process group whose rank 0 is the trainer and whose other ranks are a server's
workers.

Tensors travel in buckets, as one flat buffer of bytes behind a header that names them; the receiver needs to know
nothing beforehand. Both sides import this module, and neither the default process group nor vLLM takes part.

Whoever reaches the meeting point can join the group, so the group proves itself before anything is sent: every rank
shows every other one that it knows the stream's secret, over the connection that weights would take. The bytes that
follow are neither encrypted nor signed.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

_BUCKET_BYTES = 256 << 20
"""What is sent at once, unless a single tensor is larger."""

_ALIGNMENT = 16
"""Bytes at whose multiples tensors begin in a bucket, so that any type can be viewed there."""

_NONCE_BYTES = 32

_store: Any = dist.TCPStore  # type: ignore[attr-defined]


class WeightStream:
    """
    Holds one end of a stream.

    Args:
        backend (`str`):
            `nccl` from device to device, `gloo` over host memory.
        store (`dist.Store`):
            Where the ends meet; the trainer's end made it ([`open_store`]).
        host (`str`):
            The address of this end; `gloo` listens on no other.
        rank (`int`):
            0 for the trainer, from 1 on for the workers.
        size (`int`):
            Workers and trainer together.
        secret (`str`):
            What every end was told beforehand, and nobody else.
        meeting_seconds (`float`):
            After this long waiting for another end to join and to prove itself fails.
        seconds (`float`):
            After this long a broadcast fails.

    Raises:
        `RuntimeError`: another rank did not come, or does not know the secret.
    """

    def __init__(
        self,
        backend: Literal["nccl", "gloo"],
        store: Any,
        host: str,
        rank: int,
        size: int,
        *,
        secret: str,
        meeting_seconds: float,
        seconds: float,
    ):
        self._store = store  # the trainer's end serves it
        limit = timedelta(seconds=meeting_seconds)
        self._group: Any
        if backend == "nccl":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = limit
            self._device = torch.device("cuda", torch.cuda.current_device())
            self._group = dist.ProcessGroupNCCL(store, rank, size, options)
        else:
            self._device = torch.device("cpu")
            options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
            options._timeout = limit
            options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
            self._group = dist.ProcessGroupGloo(store, rank, size, options)
        self._prove(rank, size, secret.encode())
        self._group._set_default_timeout(timedelta(seconds=seconds))

    def _prove(self, rank: int, size: int, secret: bytes) -> None:
        """
        Shows every rank that this one knows the secret, and refuses a rank that does not.

        Every pair challenges each other with nonces of their own. A proof names who proves to whom, so none can be
        used for another rank or sent back to the one that made it.
        """
        nonces = [secrets.token_bytes(_NONCE_BYTES) for _ in range(size)]
        challenges = self._exchange(nonces)
        proofs = self._exchange([_proof(secret, c, rank, other) for other, c in enumerate(challenges)])
        for other, (nonce, proof) in enumerate(zip(nonces, proofs, strict=True)):
            if not hmac.compare_digest(proof, _proof(secret, nonce, other, rank)):
                raise RuntimeError(
                    f"rank {other} of {size} in the stream of weights does not know its secret, so a stranger joined. "
                    "Nothing was sent. Keep the ports of trainer and servers inside your network."
                )

    def _exchange(self, messages: Sequence[bytes]) -> list[bytes]:
        """Sends each rank its message, all as long as a nonce; returns what each rank sent to this one."""
        given = torch.tensor([list(message) for message in messages], dtype=torch.uint8).to(self._device)
        taken = torch.empty_like(given)
        self._group.alltoall_base(taken, given, [], []).wait()
        return [bytes(row) for row in taken.tolist()]

    def put(self, buffer: Tensor) -> Any:
        """Starts to broadcast a buffer; `.wait()` on what it returns ends it, or raises what went wrong."""
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
    Sends tensors through several streams at once. A stream that breaks gets nothing more; the others continue.

    Args:
        streams (`Sequence[WeightStream]`):
            The trainer's ends.
        tensors (`Iterable[tuple[str, Tensor]]`):
            Names and whole tensors; iterated once and to the end, even after an error.
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
    finally:  # two zeros end the stream; a receiver that got too little knows from the number of tensors
        broadcast(torch.zeros(2, dtype=torch.int64))
    return sent, broken


def _proof(secret: bytes, nonce: bytes, prover: int, verifier: int) -> bytes:
    return hmac.digest(secret, nonce + f"{prover} to {verifier}".encode(), "sha256")


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
    """Makes the header and one buffer with all tensors of a bucket."""
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


def open_store(host: str, seconds: float) -> Any:
    """Opens the trainer's meeting point for one stream, on a free `port` of the address `host` and on no other."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family)
    port = listener.getsockname()[1]
    return _store(
        *(host, port),
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=seconds),
        master_listen_fd=listener.detach(),  # the store closes it
    )


def join_store(host: str, port: int, seconds: float) -> Any:
    """Connects a worker to [`open_store`]."""
    return _store(host, port, is_master=False, timeout=timedelta(seconds=seconds))


def own_address(host: str | None, port: int, seconds: float) -> str:
    """Returns the address of this machine from which it reaches `host`, and at which it is reached from there."""
    with socket.create_connection((host, port), timeout=seconds) as connection:
        return str(connection.getsockname()[0])
