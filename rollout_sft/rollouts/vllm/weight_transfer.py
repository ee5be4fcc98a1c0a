"""Brings the live weights to vLLM servers.

    folder       the trainer writes them once to a folder that it shares with the servers; every server reads it
    nccl, gloo   the trainer broadcasts them to the servers' workers, over devices or host memory; nothing is written

Either way a server learns the new version last, so one that fails on the way never seems to have the new weights.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor

from rollout_sft.config.vllm import VLLMConfig
from rollout_sft.rollouts.live_weights import LiveWeights
from rollout_sft.rollouts.vllm.http import Deadline, ServerError, excerpt
from rollout_sft.rollouts.vllm.image_prompts import engine_config
from rollout_sft.rollouts.vllm.routes import Server
from rollout_sft.rollouts.vllm.weight_stream import WeightStream, open_store, own_address, send

T = TypeVar("T")

_FILE_BYTES = 4 << 30
"""Size of one file; the writing rank holds as much in memory at once."""

_MEETING_SECONDS = 60.0
"""The longest that the ends of a stream wait for each other to join."""

_MAY_DIFFER = {"_name_or_path", "architectures", "attn_implementation", "dtype", "torch_dtype", "transformers_version"}
_MAY_DIFFER |= {"bos_token_id", "eos_token_id", "pad_token_id", "use_cache"}
"""Entries of a model's configuration that do not change what it computes from token ids."""


class WeightTransfer(Protocol):
    """Brings weights to servers."""

    def send(
        self, weights: LiveWeights, marker: str, servers: Sequence[Server], deadline: Deadline
    ) -> dict[Server, ServerError]:
        """
        Makes servers load the live weights under the version `marker`; every rank calls it at the same point.

        Returns:
            `dict[Server, ServerError]`: on the main rank what kept servers from it and may pass; sending again to
            these may help. Failures that will not pass are raised.
        """
        ...

    def resend(self, weights: LiveWeights, marker: str, server: Server, deadline: Deadline) -> None:
        """Makes one server that lost the last weights load them again; one rank calls it alone."""
        ...

    def close(self) -> None:
        """Gives everything back."""
        ...


class FolderTransfer:
    """
    Transfers weights through a folder that trainer and servers reach.

    Args:
        folder (`Path`):
            Where, under the same path everywhere.
    """

    def __init__(self, folder: Path):
        self._folder = folder.absolute()
        self._kept = ""

    def send(
        self, weights: LiveWeights, marker: str, servers: Sequence[Server], deadline: Deadline
    ) -> dict[Server, ServerError]:
        """See [`WeightTransfer`]."""
        if marker != self._kept:
            self._write(weights, marker)
        if not PartialState().is_main_process:
            return {}
        return _failures(servers, side_by_side(lambda server: self.resend(weights, marker, server, deadline), servers))

    def resend(self, weights: LiveWeights, marker: str, server: Server, deadline: Deadline) -> None:
        """See [`WeightTransfer`]."""
        with _update(weights, marker, server, deadline):
            server.call_workers("reload_weights", {"weights_path": str(self._folder / marker)}, deadline)

    def close(self) -> None:
        """Removes the weights that were handed over."""
        self._forget()

    def _write(self, weights: LiveWeights, marker: str) -> None:
        """Writes on one rank, under another name until it is complete, and removes the weights before."""
        with _gathered(weights) as tensors:
            if PartialState().is_main_process:
                partial, folder = self._folder / f"{marker}.partial", self._folder / marker
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                weights.model.config.save_pretrained(partial)
                _save(tensors, partial)
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
        self._forget()
        self._kept = marker

    def _forget(self) -> None:
        if self._kept and PartialState().is_main_process:
            shutil.rmtree(self._folder / self._kept, ignore_errors=True)
        self._kept = ""


class StreamTransfer:
    """
    Transfers weights over the network, from the main rank to all workers of all servers at once.

    Args:
        backend (`str`):
            `nccl` or `gloo`.
    """

    def __init__(self, backend: Literal["nccl", "gloo"]):
        self._backend: Literal["nccl", "gloo"] = backend
        self._streams: dict[Server, tuple[str, WeightStream]] = {}
        self._opened = 0

    def send(
        self, weights: LiveWeights, marker: str, servers: Sequence[Server], deadline: Deadline
    ) -> dict[Server, ServerError]:
        """See [`WeightTransfer`]."""
        with _gathered(weights) as tensors:
            if not PartialState().is_main_process:
                return {}
            ready: dict[Server, Future[WeightStream]] = {server: Future() for server in servers}
            sent: Future[int] = Future()

            def receive(server: Server) -> None:
                try:
                    with _update(weights, marker, server, deadline):
                        ready[server].set_result(self._stream(server, marker, deadline))
                        self._receive(server, sent, deadline)
                except BaseException as error:
                    self._streams.pop(server, None)
                    if not ready[server].done():
                        ready[server].set_exception(error)
                    raise

            with ThreadPoolExecutor(1) as pool:
                received = pool.submit(side_by_side, receive, servers)
                streams = [f.result() for f in ready.values() if f.exception() is None]
                try:
                    sent.set_result(send(streams, tensors)[0])
                except BaseException as error:
                    sent.set_exception(error)
                    raise
                return _failures(servers, received.result())

    def resend(self, weights: LiveWeights, marker: str, server: Server, deadline: Deadline) -> None:
        """Not possible: gathering the weights takes every rank, and this is one alone."""
        raise ServerError(
            f"{server.url} lost the weights of this step, as after a restart, and one rank alone cannot send them "
            f"again over {self._backend}. Resume the run from its last checkpoint, or set rollout_matching.vllm."
            "weight_transfer: folder, with which a server that comes back gets them at once."
        )

    def close(self) -> None:
        """Leaves the process groups."""
        self._streams.clear()

    def _receive(self, server: Server, sent: Future[int], deadline: Deadline) -> None:
        """Makes the workers load what is sent meanwhile, all of it."""
        try:
            received = server.receive(deadline)
        except ServerError as error:
            raise ServerError(str(error), again=True) from error  # a broken stream can be opened again
        if set(received) != {sent.result()}:
            raise ServerError(f"{server.url} received {received[:8]} tensors of {sent.result()}.", again=True)

    def _stream(self, server: Server, marker: str, deadline: Deadline) -> WeightStream:
        """Returns the stream to a server; opens a new one where the server has lost its end."""
        name, stream = self._streams.get(server, ("", None))
        if stream is not None and server.open_streams(deadline) == {name}:
            return stream
        self._opened += 1
        name = f"{marker}-{self._opened}"
        server.read_limits(deadline)
        seconds = min(_MEETING_SECONDS, deadline.left(f"{server.url} is to join a stream of weights."))
        try:
            host = own_address(*server.address, seconds)
        except OSError as error:
            raise ServerError(f"{server.url} cannot be reached ({error}).", again=True) from error
        store, size, secret = open_store(host, seconds), 1 + server.devices, secrets.token_hex(32)
        limits = {"meeting_seconds": seconds, "seconds": deadline.seconds}
        meeting = {"name": name, "host": host, "port": store.port, "size": size, "secret": secret, **limits}
        with ThreadPoolExecutor(1) as pool:
            joined = pool.submit(server.join_stream, {"backend": self._backend, **meeting}, deadline)
            try:
                stream = WeightStream(self._backend, store, host, 0, size, secret=secret, **limits)
            except RuntimeError as error:
                said = joined.exception() or "nothing"
                raise ServerError(
                    f"no stream of weights to {server.url}: {error} The server says: {said}", again=True
                ) from error
            ranks = sorted(joined.result())
        if ranks != list(range(1, size)):
            raise ServerError(f"{server.url} joined the stream as ranks {ranks[:8]}; expected 1 to {size - 1}.")
        self._streams[server] = name, stream
        return stream


def make_transfer(config: VLLMConfig, *, default_folder: Path) -> WeightTransfer:
    """Makes the transfer that a configuration names."""
    if config.weight_transfer == "folder":
        return FolderTransfer(Path(config.weights_dir or default_folder))
    return StreamTransfer(config.weight_transfer)


@contextmanager
def _gathered(weights: LiveWeights) -> Iterator[Iterator[tuple[str, Tensor]]]:
    """Yields the weights and iterates them to their end: where they are sharded the other ranks wait in gathers."""
    tensors = weights.tensors()
    try:
        yield tensors
    finally:
        for _ in tensors:
            pass


@contextmanager
def _update(weights: LiveWeights, marker: str, server: Server, deadline: Deadline) -> Iterator[None]:
    """Does what a server needs before and after it loads weights."""
    _check_model(weights, server, deadline)
    server.set_weight_version(f"loading {marker}", deadline)
    yield
    server.call_workers("rollout_repack_head", {}, deadline)
    server.reset_encoder_cache(deadline)
    while not server.reset_prefix_cache(deadline):
        # Requests of an earlier attempt that nobody waits for any more still hold their blocks.
        deadline.sleep(0.2, f"{server.url} still runs other requests, so its prefix cache cannot be reset")
    server.set_weight_version(marker, deadline)


def _check_model(weights: LiveWeights, server: Server, deadline: Deadline) -> None:
    served = server.configuration(deadline)
    ours = json.loads(json.dumps(engine_config(weights.model.config).to_dict(), default=str))
    for key in sorted((served.keys() & ours.keys()) - _MAY_DIFFER):
        if served[key] != ours[key]:
            raise ServerError(
                f"{server.url} serves another model than the one that is trained: {key} is "
                f"{excerpt(repr(served[key]))} there and {ours[key]!r} here. Start the server with this run's model."
            )


def side_by_side(work: Callable[..., T], *arguments: Sequence[Any]) -> list[Future[T]]:
    """Calls `work` for the arguments as `map` does, all at the same time; returns when every call has ended."""
    with ThreadPoolExecutor(len(arguments[0])) as pool:
        return [pool.submit(work, *each) for each in zip(*arguments, strict=True)]


def _failures(servers: Sequence[Server], ended: Sequence[Future[None]]) -> dict[Server, ServerError]:
    """Returns the failures that may pass; raises the first that will not, in the order of the servers."""
    failures: dict[Server, ServerError] = {}
    for server, future in zip(servers, ended, strict=True):
        error = future.exception()
        if isinstance(error, ServerError) and error.again:
            failures[server] = error
        elif error is not None:
            raise error
    return failures


def _save(tensors: Any, folder: Path) -> None:
    """Writes checkpoint files of a bounded size, and the index that names them."""
    held: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    files = 0

    def flush() -> None:
        nonlocal files
        if held:
            files += 1
            file = f"model-{files:05d}.safetensors"
            save_file(held, folder / file, metadata={"format": "pt"})
            names.update(dict.fromkeys(held, file))
            held.clear()

    for name, tensor in tensors:
        held[name] = tensor.detach().cpu().contiguous()
        if sum(t.nbytes for t in held.values()) >= _FILE_BYTES:
            flush()
    flush()
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
