"""Served vLLM: weights go to the servers through a shared folder, prompts and responses as token ids over HTTP.

A server keeps the version of its weights beside them, so a restart forgets it. Before and after every share of requests
the version is asked for: a server that came back is given the weights again, and an answer from any other weights is
thrown away. Rollouts are therefore never stale, whatever happens to a server in between.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor

from rollout_sft.agreement import together
from rollout_sft.rollouts.base import RolloutRequest
from rollout_sft.rollouts.vllm import Answer, VLLMConfig
from rollout_sft.rollouts.vllm_http import Deadline, Server, ServerError
from rollout_sft.rollouts.weights import LiveWeights

T = TypeVar("T")

_FILE_BYTES = 4 << 30
"""Weights of one file: what a rank holds in memory at once while it writes."""

_MAY_DIFFER = {"_name_or_path", "architectures", "attn_implementation", "dtype", "torch_dtype", "transformers_version"}
_MAY_DIFFER |= {"bos_token_id", "eos_token_id", "pad_token_id", "use_cache"}
"""Entries of a model's configuration that do not change what it computes from token ids."""


class ServerEngine:
    """
    vLLM servers that were started beforehand.

    Args:
        config (`VLLMConfig`):
            Addresses, timeout and retries.
        weights_dir (`Path`):
            A folder that trainer and servers reach under the same path.
        show_progress (`bool`):
            Whether to draw a bar while rollouts are under way.

    Attributes:
        version (`int` or `None`):
            Version of the live weights that the servers were given.
        max_model_len (`int`):
            Most tokens of a prompt and its response, the least of all servers.
        retries (`int`):
            How often a server had to be asked again so far.
    """

    def __init__(self, config: VLLMConfig, weights_dir: Path, *, show_progress: bool):
        self._config = config
        self._folder = weights_dir.absolute()
        self._show_progress = show_progress
        self._servers = [Server(url, concurrency=config.concurrency) for url in config.urls]
        self._run = ""
        self._marker = ""
        self._description: dict[str, Any] = {}
        self.version: int | None = None
        self.max_model_len = 0
        self.retries = 0

    # --- weights -----------------------------------------------------------------------------------------------

    def load(self, weights: LiveWeights) -> None:
        """Writes the live weights and has every server load them; every rank calls it together."""
        if not self._run:
            # Tells apart the runs that use a server one after the other; decides nothing.
            _, tokens = together(lambda: secrets.token_hex(4), share=lambda token: token)
            self._run = tokens[0]
            self._description = weights.model.config.to_dict()
        version, first = weights.version, PartialState().is_main_process
        marker = f"{self._run}-{version}"
        together(lambda: self._write(weights, self._folder / marker, keep=first), share=lambda _: None)
        before, self._marker = self._marker, marker
        together(lambda: self._update_all() if first else None, share=lambda _: None)
        together(self._read_limits, share=lambda _: None)
        if first and before and before != marker:
            shutil.rmtree(self._folder / before, ignore_errors=True)
        self.version = version

    def _write(self, weights: LiveWeights, folder: Path, *, keep: bool) -> None:
        """Every rank takes part in gathering; one writes, under another name until it is complete."""
        tensors = weights.tensors()
        try:
            if keep:
                partial = folder.with_suffix(".partial")
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                weights.model.config.save_pretrained(partial)
                _save(tensors, partial)
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
        finally:
            for _ in tensors:
                pass

    def _update_all(self) -> None:
        """Has all servers load the current weights, side by side."""
        deadline = Deadline(self._config.timeout)
        self._for_each(lambda server, _: self._persist(server, deadline, self._update, server, deadline))

    def _read_limits(self) -> None:
        """Every rank asks every server itself, so every rank knows what it needs to ask for rollouts."""
        deadline = Deadline(self._config.timeout)
        self._for_each(lambda server, _: self._persist(server, deadline, server.read_limits, deadline))
        self.max_model_len = min(server.max_model_len for server in self._servers)

    def _update(self, server: Server, deadline: Deadline) -> None:
        """
        The version is set last: a server that fails on the way is not taken for one with the new weights.
        """
        self._check_model(server, deadline)
        server.post("/update_weight_version", {"new_version": f"loading {self._marker}"}, deadline)
        server.call_workers("reload_weights", {"weights_path": str(self._folder / self._marker)}, deadline)
        server.call_workers("rollout_repack_head", {}, deadline)
        while not server.post("/reset_prefix_cache", {}, deadline)["success"]:
            # Requests of an earlier attempt that nobody waits for any more still hold their blocks.
            deadline.sleep(0.2, f"{server.url} still runs other requests, so its prefix cache cannot be reset")
        server.post("/update_weight_version", {"new_version": self._marker}, deadline)

    def _check_model(self, server: Server, deadline: Deadline) -> None:
        served = json.loads(server.call_workers("rollout_description", {}, deadline)[0])
        ours = json.loads(json.dumps(self._description, default=str))
        for key in sorted((served.keys() & ours.keys()) - _MAY_DIFFER):
            if served[key] != ours[key]:
                raise ServerError(
                    f"{server.url} serves another model than the one that is trained: {key} is {served[key]!r} there "
                    f"and {ours[key]!r} here. Start the server with the model of this run."
                )

    # --- rollouts ----------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[RolloutRequest], knobs: Mapping[str, Any]) -> list[Answer]:
        """One answer per request; the seed of each makes the split over the servers invisible."""
        if not requests:
            return []
        from tqdm import tqdm

        deadline = Deadline(self._config.timeout)
        sizes = [server.devices for server in self._servers]
        bounds = split_in_proportion(len(requests), sizes, first=PartialState().process_index % len(sizes))
        with tqdm(total=len(requests), desc="rollouts", disable=not self._show_progress, leave=False) as bar:

            def answer(server: Server, i: int) -> list[Answer]:
                share = requests[bounds[i][0] : bounds[i][1]]
                return self._persist(server, deadline, self._answer_share, server, share, knobs, deadline, bar)

            return [answer for share in self._for_each(answer) for answer in share]

    def _answer_share(
        self,
        server: Server,
        share: Sequence[RolloutRequest],
        knobs: Mapping[str, Any],
        deadline: Deadline,
        bar: Any,
    ) -> list[Answer]:
        if not share:
            return []
        if server.weight_version(deadline) != self._marker:
            self._update(server, deadline)
        answers = server.complete(share, knobs, deadline, bar)
        found = server.weight_version(deadline)
        if found != self._marker:
            bar.update(-len(answers))
            raise ServerError(
                f"{server.url} changed its weights while it generated: they are {found!r} now and were "
                f"{self._marker!r}. Does another run use the same server?",
                again=True,
            )
        return answers

    def sleep(self) -> None:
        """Servers keep their memory: they have devices of their own."""

    def close(self) -> None:
        """Removes the weights that were handed over."""
        if self._marker and PartialState().is_main_process:
            shutil.rmtree(self._folder / self._marker, ignore_errors=True)
        self.version = None

    # --- asking again ------------------------------------------------------------------------------------------

    def _for_each(self, work: Callable[[Server, int], T]) -> list[T]:
        """Runs `work` for all servers at the same time; the first failure, in their order, is raised."""
        with ThreadPoolExecutor(len(self._servers)) as pool:
            futures = [pool.submit(work, server, i) for i, server in enumerate(self._servers)]
        return [future.result() for future in futures]

    def _persist(self, server: Server, deadline: Deadline, work: Callable[..., T], *args: Any) -> T:
        """Asks again when a server fails in a way that may pass, `retries` times and not past the deadline."""
        failures: list[str] = []
        while True:
            try:
                return work(*args)
            except ServerError as error:
                failures.append(str(error))
                if not error.again:
                    raise
                if len(failures) > self._config.retries:
                    raise ServerError(
                        f"{failures[-1]} Asked {len(failures)} times (rollout_matching.vllm.retries: "
                        f"{self._config.retries})."
                    ) from error
                self.retries += 1
                deadline.sleep(min(2.0 ** (len(failures) - 1), 30.0), failures[-1])


def split_in_proportion(count: int, sizes: Sequence[int], *, first: int = 0) -> list[tuple[int, int]]:
    """
    Cuts `count` requests into one run per server, in proportion to their sizes.

    Args:
        count (`int`):
            Requests to split.
        sizes (`Sequence[int]`):
            Devices of each server.
        first (`int`, *optional*, defaults to 0):
            Server that gets what does not divide evenly; ranks begin at different ones.

    Returns:
        `list[tuple[int, int]]`: start and end of each server's run.
    """
    shares = [count * size // sum(sizes) for size in sizes]
    for i in range(count - sum(shares)):
        shares[(first + i) % len(sizes)] += 1
    ends = [sum(shares[: i + 1]) for i in range(len(sizes))]
    return [(end - share, end) for end, share in zip(ends, shares, strict=True)]


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
