"""How live weights get into vLLM servers.

folder       written once to a folder that trainer and servers share; every server reads it
nccl, gloo   broadcast from the trainer to the servers' workers, over devices or host memory; nothing is written

Either way the version is the last thing that a server is told, so one that fails on the way is never taken for one
with the new weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor

from rollout_sft.config.vllm import VLLMConfig
from rollout_sft.rollouts.live_weights import LiveWeights
from rollout_sft.rollouts.vllm.http import Deadline, Server, ServerError
from rollout_sft.rollouts.vllm.weight_stream import WeightStream, open_store, own_address, send

_FILE_BYTES = 4 << 30
"""Weights of one file: what a rank holds in memory at once while it writes."""

_MEETING_SECONDS = 60.0
"""The longest that the ends of a stream wait for each other before the first weights."""

_MAY_DIFFER = {"_name_or_path", "architectures", "attn_implementation", "dtype", "torch_dtype", "transformers_version"}
_MAY_DIFFER |= {"bos_token_id", "eos_token_id", "pad_token_id", "use_cache"}
"""Entries of a model's configuration that do not change what it computes from token ids."""


class WeightTransfer(Protocol):
    """Brings weights to servers."""

    def send(
        self, weights: LiveWeights, marker: str, servers: Sequence[Server], deadline: Deadline
    ) -> dict[Server, ServerError]:
        """
        Has servers load the live weights under the version `marker`; every rank calls it at the same point.

        Returns:
            `dict[Server, ServerError]`: on the main rank what kept servers from it and may pass; sending again to
            these may help. Failures that will not pass are raised.
        """
        ...

    def resend(self, weights: LiveWeights, marker: str, server: Server, deadline: Deadline) -> None:
        """Has one server, which lost the weights that were sent last, load them again; a rank calls it alone."""
        ...

    def close(self) -> None:
        """Gives everything back."""
        ...


class FolderTransfer:
    """
    Weights on a disk that trainer and servers reach.

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
        return _side_by_side(servers, lambda server: self.resend(weights, marker, server, deadline))

    def resend(self, weights: LiveWeights, marker: str, server: Server, deadline: Deadline) -> None:
        """See [`WeightTransfer`]."""
        with _update(weights, marker, server, deadline):
            server.call_workers("reload_weights", {"weights_path": str(self._folder / marker)}, deadline)

    def close(self) -> None:
        """Removes the weights that were handed over."""
        self._forget()

    def _write(self, weights: LiveWeights, marker: str) -> None:
        """One rank writes, under another name until it is complete; the weights before are removed."""
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
    Weights over the network, from the main rank to all workers of all servers at once.

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
                failures = pool.submit(_side_by_side, servers, receive)
                streams = [f.result() for f in ready.values() if f.exception() is None]
                try:
                    sent.set_result(send(streams, tensors)[0])
                except BaseException as error:
                    sent.set_exception(error)
                    raise
                return failures.result()

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
        """Has the workers load what is sent meanwhile, all of it."""
        try:
            received = [int(count) for count in server.call_workers("rollout_receive", {}, deadline)]
        except ServerError as error:
            raise ServerError(str(error), again=True) from error  # a broken stream can be opened again
        if set(received) != {sent.result()}:
            raise ServerError(f"{server.url} received {received} tensors of {sent.result()}.", again=True)

    def _stream(self, server: Server, marker: str, deadline: Deadline) -> WeightStream:
        """The stream to a server; a new one where the server does not have the other end any more."""
        name, stream = self._streams.get(server, ("", None))
        if stream is not None and set(server.call_workers("rollout_stream", {}, deadline)) == {name}:
            return stream
        self._opened += 1
        name = f"{marker}-{self._opened}"
        server.read_limits(deadline)
        seconds = min(_MEETING_SECONDS, deadline.left(f"{server.url} is to join a stream of weights."))
        store = open_store(seconds)
        size = 1 + server.devices
        meeting = {
            "name": name,
            "backend": self._backend,
            "host": own_address(server.url),
            "port": store.port,
            "size": size,
            "seconds": deadline.seconds,
        }
        with ThreadPoolExecutor(1) as pool:
            joined = pool.submit(server.call_workers, "rollout_join", meeting, deadline)
            try:
                stream = WeightStream(self._backend, store, 0, size, seconds=deadline.seconds)
            except RuntimeError as error:
                joined.result()  # what the server says is closer to the cause
                raise ServerError(f"no stream of weights to {server.url}: {error}", again=True) from error
            joined.result()
        self._streams[server] = name, stream
        return stream


def make_transfer(config: VLLMConfig, *, default_folder: Path) -> WeightTransfer:
    """The transfer that a configuration names."""
    if config.weight_transfer == "folder":
        return FolderTransfer(Path(config.weights_dir or default_folder))
    return StreamTransfer(config.weight_transfer)


@contextmanager
def _gathered(weights: LiveWeights) -> Iterator[Iterator[tuple[str, Tensor]]]:
    """The weights, iterated to their end whatever happens: with sharded ones the other ranks wait in gathers."""
    tensors = weights.tensors()
    try:
        yield tensors
    finally:
        for _ in tensors:
            pass


@contextmanager
def _update(weights: LiveWeights, marker: str, server: Server, deadline: Deadline) -> Iterator[None]:
    """What a server does around loading."""
    _check_model(weights, server, deadline)
    server.post("/update_weight_version", {"new_version": f"loading {marker}"}, deadline)
    yield
    server.call_workers("rollout_repack_head", {}, deadline)
    while not server.post("/reset_prefix_cache", {}, deadline)["success"]:
        # Requests of an earlier attempt that nobody waits for any more still hold their blocks.
        deadline.sleep(0.2, f"{server.url} still runs other requests, so its prefix cache cannot be reset")
    server.post("/update_weight_version", {"new_version": marker}, deadline)


def _check_model(weights: LiveWeights, server: Server, deadline: Deadline) -> None:
    served = json.loads(server.call_workers("rollout_description", {}, deadline)[0])
    ours = json.loads(json.dumps(weights.model.config.to_dict(), default=str))
    for key in sorted((served.keys() & ours.keys()) - _MAY_DIFFER):
        if served[key] != ours[key]:
            raise ServerError(
                f"{server.url} serves another model than the one that is trained: {key} is {served[key]!r} there "
                f"and {ours[key]!r} here. Start the server with the model of this run."
            )


def _side_by_side(servers: Sequence[Server], work: Callable[[Server], None]) -> dict[Server, ServerError]:
    """Runs `work` for all servers at the same time. Raises the first failure that will not pass, in their order."""
    with ThreadPoolExecutor(len(servers)) as pool:
        futures = {server: pool.submit(work, server) for server in servers}
    failures: dict[Server, ServerError] = {}
    for server, future in futures.items():
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
