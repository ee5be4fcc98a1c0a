"""Generates with vLLM servers: token ids travel over HTTP, weights as `weight_transfer` brings them.

A server keeps the version of its weights in memory with them, so a restart forgets it. The engine asks for the version
before and after every share of requests: it gives the weights again to a server that came back, and throws away answers
from any other weights. Rollouts are therefore never stale, even if a server restarts in between.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from accelerate import PartialState

from rollout_sft.config.vllm import VLLMConfig
from rollout_sft.inputs.base import InputAdapter
from rollout_sft.ranks.distributed import together
from rollout_sft.rollouts.base import RolloutRequest
from rollout_sft.rollouts.live_weights import LiveWeights
from rollout_sft.rollouts.vllm.backend import Answer
from rollout_sft.rollouts.vllm.http import Deadline, ServerError, excerpt
from rollout_sft.rollouts.vllm.routes import Server
from rollout_sft.rollouts.vllm.weight_transfer import WeightTransfer, side_by_side

T = TypeVar("T")


class ServerEngine:
    """
    Generates with vLLM servers that were started beforehand.

    Args:
        config (`VLLMConfig`):
            Addresses, timeout and retries.
        transfer (`WeightTransfer`):
            Brings the weights to the servers.
        show_progress (`bool`):
            Whether to draw a bar while rollouts are under way.
        inputs (`InputAdapter`, *optional*):
            Collapses the prompts of an image model.

    Attributes:
        version (`int` or `None`):
            Version of the live weights that the servers were given.
        max_model_len (`int`):
            Most tokens of a prompt and its response, the least of all servers.
        retries (`int`):
            How often a server had to be asked again so far.
    """

    def __init__(
        self,
        config: VLLMConfig,
        transfer: WeightTransfer,
        *,
        show_progress: bool,
        inputs: InputAdapter | None = None,
    ):
        self._config = config
        self._transfer = transfer
        self._show_progress = show_progress
        self._servers = [Server(url, concurrency=config.concurrency, inputs=inputs) for url in config.urls]
        self._run = ""
        self._marker = ""
        self._weights: LiveWeights
        self.version: int | None = None
        self.max_model_len = 0
        self.retries = 0

    # --- weights -----------------------------------------------------------------------------------------------

    def load(self, weights: LiveWeights) -> None:
        """Makes every server load the live weights; every rank calls it together."""
        if not self._run:
            # Distinguishes the runs that use a server one after another; decides nothing.
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
        """Sends to the servers that failed; only the main rank knows them, the other ranks have none."""
        for error in failures.values():
            self._count(attempts, error)
        for error in list(failures.values())[:1]:
            deadline.sleep(_pause(attempts), str(error))
        return send(list(failures))

    def _read_limits(self) -> None:
        """Asks every server on every rank, because every rank needs the limits for its own requests."""
        deadline = Deadline(self._config.timeout)

        def read(server: Server) -> None:
            self._persist(deadline, server.read_limits, deadline)
            if self.version is None:
                self._persist(deadline, server.check_route, deadline)

        for done in side_by_side(read, self._servers):
            done.result()
        self.max_model_len = min(server.max_model_len for server in self._servers)

    # --- rollouts ----------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[RolloutRequest], knobs: Mapping[str, Any]) -> list[Answer]:
        """Returns one answer per request; because each has its own seed, the split over servers changes nothing."""
        if not requests:
            return []
        from tqdm import tqdm

        deadline = Deadline(self._config.timeout)
        sizes = [server.devices for server in self._servers]
        bounds = split_in_proportion(len(requests), sizes, first=PartialState().process_index % len(sizes))
        shares = [requests[start:end] for start, end in bounds]
        with tqdm(total=len(requests), desc="rollouts", disable=not self._show_progress, leave=False) as bar:

            def answer(server: Server, share: Sequence[RolloutRequest]) -> list[Answer]:
                return self._persist(deadline, self._answer_share, server, share, knobs, deadline, bar)

            return [answer for done in side_by_side(answer, self._servers, shares) for answer in done.result()]

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
                f"{server.url} changed its weights while it generated: they are {excerpt(found, 80)!r} now and "
                f"were {self._marker!r}. Does another run use the same server?",
                again=True,
            )
        return answers

    def sleep(self) -> None:
        """Does nothing: servers run on their own devices."""

    def close(self) -> None:
        """Gives back what the transfer of weights keeps, and closes the connections."""
        self._transfer.close()
        for server in self._servers:
            server.close()
        self.version = None

    # --- asking again ------------------------------------------------------------------------------------------

    def _persist(self, deadline: Deadline, work: Callable[..., T], *args: Any) -> T:
        """Repeats `work` while it fails in a way that may pass, at most `retries` times and not past the deadline."""
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
    """Returns the seconds to wait before the next attempt."""
    return min(2.0 ** (attempts - 1), 30.0)


def split_in_proportion(count: int, sizes: Sequence[int], *, first: int = 0) -> list[tuple[int, int]]:
    """
    Splits `count` requests into consecutive shares, one per server, in proportion to the servers' sizes.

    Args:
        count (`int`):
            Requests to split.
        sizes (`Sequence[int]`):
            Devices of each server.
        first (`int`, *optional*, defaults to 0):
            The server that gets the first request of the remainder; it differs between ranks.

    Returns:
        `list[tuple[int, int]]`: start and end of each server's share.
    """
    shares = [count * size // sum(sizes) for size in sizes]
    for i in range(count - sum(shares)):
        shares[(first + i) % len(sizes)] += 1
    ends = [sum(shares[: i + 1]) for i in range(len(sizes))]
    return [(end - share, end) for end, share in zip(ends, shares, strict=True)]
