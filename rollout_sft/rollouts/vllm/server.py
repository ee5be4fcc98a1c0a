"""Served vLLM: prompts and responses go as token ids over HTTP, weights as `vllm_transfer` brings them.

A server keeps the version of its weights beside them, so a restart forgets it. Before and after every share of requests
the version is asked for: a server that came back is given the weights again, and an answer from any other weights is
thrown away. Rollouts are therefore never stale, whatever happens to a server in between.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from accelerate import PartialState

from rollout_sft.config.vllm import VLLMConfig
from rollout_sft.ranks.distributed import together
from rollout_sft.rollouts.base import RolloutRequest
from rollout_sft.rollouts.live_weights import LiveWeights
from rollout_sft.rollouts.vllm.backend import Answer
from rollout_sft.rollouts.vllm.http import Deadline, Server, ServerError
from rollout_sft.rollouts.vllm.weight_transfer import WeightTransfer

T = TypeVar("T")


class ServerEngine:
    """
    vLLM servers that were started beforehand.

    Args:
        config (`VLLMConfig`):
            Addresses, timeout and retries.
        transfer (`WeightTransfer`):
            Brings the weights to the servers.
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

    def __init__(self, config: VLLMConfig, transfer: WeightTransfer, *, show_progress: bool):
        self._config = config
        self._transfer = transfer
        self._show_progress = show_progress
        self._servers = [Server(url, concurrency=config.concurrency) for url in config.urls]
        self._run = ""
        self._marker = ""
        self._weights: LiveWeights
        self.version: int | None = None
        self.max_model_len = 0
        self.retries = 0

    # --- weights -----------------------------------------------------------------------------------------------

    def load(self, weights: LiveWeights) -> None:
        """Has every server load the live weights; every rank calls it together."""
        if not self._run:
            # Tells apart the runs that use a server one after the other; decides nothing.
            _, tokens = together(lambda: secrets.token_hex(4), share=lambda token: token)
            self._run = tokens[0]
        marker, deadline = f"{self._run}-{weights.version}", Deadline(self._config.timeout)
        send = partial(self._transfer.send, weights, marker, deadline=deadline)
        failures, reports = together(lambda: send(self._servers), share=len)
        attempts = 1
        while reports[0]:
            failures, reports = together(partial(self._send_again, send, failures, attempts, deadline), share=len)
            attempts += 1
        together(self._read_limits, share=lambda _: None)
        self._weights, self._marker, self.version = weights, marker, weights.version

    def _send_again(
        self,
        send: Callable[[Sequence[Server]], dict[Server, ServerError]],
        failures: Mapping[Server, ServerError],
        attempts: int,
        deadline: Deadline,
    ) -> dict[Server, ServerError]:
        """To the servers that failed, which the main rank knows; on the others there are none."""
        for error in failures.values():
            self._count(attempts, error)
        for error in list(failures.values())[:1]:
            deadline.sleep(_pause(attempts), str(error))
        return send(list(failures))

    def _read_limits(self) -> None:
        """Every rank asks every server itself, so every rank knows what it needs to ask for rollouts."""
        deadline = Deadline(self._config.timeout)
        self._for_each(lambda server, _: self._persist(server, deadline, server.read_limits, deadline))
        self.max_model_len = min(server.max_model_len for server in self._servers)

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
            self._transfer.resend(self._weights, self._marker, server, deadline)
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
        """Gives back what the transfer of weights keeps."""
        self._transfer.close()
        self.version = None

    # --- asking again ------------------------------------------------------------------------------------------

    def _for_each(self, work: Callable[[Server, int], T]) -> list[T]:
        """Runs `work` for all servers at the same time; the first failure, in their order, is raised."""
        with ThreadPoolExecutor(len(self._servers)) as pool:
            futures = [pool.submit(work, server, i) for i, server in enumerate(self._servers)]
        return [future.result() for future in futures]

    def _persist(self, server: Server, deadline: Deadline, work: Callable[..., T], *args: Any) -> T:
        """Asks again when a server fails in a way that may pass, `retries` times and not past the deadline."""
        attempts = 0
        while True:
            try:
                return work(*args)
            except ServerError as error:
                if not error.again:
                    raise
                attempts += 1
                self._count(attempts, error)
                deadline.sleep(_pause(attempts), str(error))

    def _count(self, attempts: int, error: ServerError) -> None:
        """Counts a failure that may pass, or raises it as the last one that was allowed."""
        if attempts > self._config.retries:
            raise ServerError(
                f"{error} Asked {attempts} times (rollout_matching.vllm.retries: {self._config.retries})."
            ) from error
        self.retries += 1


def _pause(attempts: int) -> float:
    """Seconds before the next attempt."""
    return min(2.0 ** (attempts - 1), 30.0)


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
