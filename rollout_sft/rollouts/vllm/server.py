"""Generates with vLLM servers: token ids travel over HTTP, weights as `weight_transfer` brings them.

A server keeps the version of its weights in memory with them, so a restart forgets it. The engine asks for the version
before it asks for rollouts, and again before it hands any out: it gives the weights again to a server that came back,
and throws away answers from any other weights. Rollouts are therefore never stale, even if a server restarts meanwhile.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from threading import Lock
from typing import Any, TypeVar

from accelerate import PartialState

from rollout_sft.config.vllm import VLLMConfig
from rollout_sft.inputs.base import InputAdapter
from rollout_sft.ranks.distributed import together
from rollout_sft.rollouts.base import Rollout, RolloutRequest
from rollout_sft.rollouts.live_weights import LiveWeights
from rollout_sft.rollouts.vllm.backend import Answer
from rollout_sft.rollouts.vllm.completion import Completion
from rollout_sft.rollouts.vllm.http import Deadline, ServerError, excerpt
from rollout_sft.rollouts.vllm.routes import Server
from rollout_sft.rollouts.vllm.share import pause
from rollout_sft.rollouts.vllm.streaming import ServedRollouts, Watch
from rollout_sft.rollouts.vllm.weight_transfer import WeightTransfer, side_by_side

T = TypeVar("T")

_INTERVAL = 16
"""A server sends tokens in groups of this many, where somebody looks at them before the response has ended."""


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
        self._counting = Lock()

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
            self.count(attempts, error)
        for error in list(failures.values())[:1]:
            deadline.sleep(pause(attempts), str(error))
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

    def begin(
        self,
        requests: Sequence[RolloutRequest],
        knobs: Mapping[str, Any],
        finish: Callable[[int, Answer], Rollout],
        *,
        watch: Callable[[], Watch] | None = None,
        report: Callable[[Sequence[Answer], float], None] = lambda _, __: None,
        interval: int = _INTERVAL,
    ) -> ServedRollouts:
        """
        Starts all requests; because each has its own seed, the split over servers changes nothing.

        Args:
            requests (`Sequence[RolloutRequest]`):
                What is asked.
            knobs (`Mapping`):
                All fields of vLLM's `SamplingParams` but the seed.
            finish (`Callable[[int, Answer], Rollout]`):
                Makes the rollout of a request, by its index.
            watch (`Callable[[], Watch]`, *optional*):
                Makes what says after how many tokens a response ends. The server stops soon after them; `finish` cuts
                off the rest.
            report (`Callable[[Sequence[Answer], float], None]`, *optional*):
                Called at the end of each `wait` with the answers so far and the seconds that they took.
            interval (`int`, *optional*):
                A server sends tokens in groups of this many.

        Returns:
            [`ServedRollouts`]: to be closed.
        """
        from tqdm import tqdm

        sizes = [server.devices for server in self._servers]
        bounds = split_in_proportion(len(requests), sizes, first=PartialState().process_index % len(sizes))
        knobs = {**knobs, "stream_interval": interval}
        return ServedRollouts(
            [
                (_Served(self, server, knobs), requests[start:end])
                for server, (start, end) in zip(self._servers, bounds, strict=True)
            ],
            lambda i, completion: finish(i, _answer(completion)),
            watch=watch,
            deadline=Deadline(self._config.timeout),
            bar=tqdm(total=len(requests), desc="rollouts", disable=not self._show_progress, leave=False),
            report=lambda completions, seconds: report([_answer(c) for c in completions], seconds),
        )

    def generate(
        self, requests: Sequence[RolloutRequest], knobs: Mapping[str, Any], watch: Callable[[], Watch] | None = None
    ) -> list[Answer]:
        """Returns one answer per request."""
        answers: dict[int, Answer] = {}

        def keep(i: int, answer: Answer) -> Rollout:
            answers[i] = answer
            return Rollout(response_ids=answer.token_ids, truncated=False)

        # Without a rule that ends responses nobody looks at tokens before the last.
        interval = _INTERVAL if watch else knobs["max_tokens"]
        with closing(self.begin(requests, knobs, keep, watch=watch, interval=interval)) as rollouts:
            return [answers[i] for i in rollouts.wait(None)]

    def renew(self, server: Server, deadline: Deadline) -> bool:
        """Gives a server the weights if it has others, as after a restart; returns whether it had."""
        if server.weight_version(deadline) == self._marker:
            return False
        self._transfer.resend(self._weights, self._marker, server, deadline)
        return True

    def check(self, server: Server, deadline: Deadline) -> None:
        """Raises [`ServerError`] if a server has other weights than it was given."""
        found = server.weight_version(deadline)
        if found != self._marker:
            raise ServerError(
                f"{server.url} changed its weights while it generated: they are {excerpt(found, 80)!r} now and "
                f"were {self._marker!r}. Does another run use the same server?",
                again=True,
            )

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
                self.count(attempts, error)
                deadline.sleep(pause(attempts), str(error))

    def count(self, attempts: int, error: ServerError) -> None:
        """Counts a failure that may pass, or raises it as the last one that was allowed."""
        if attempts > self._config.retries:
            raise ServerError(
                f"{error} Asked {attempts} times (rollout_matching.vllm.retries: {self._config.retries})."
            ) from error
        with self._counting:
            self.retries += 1


class _Served:
    """One server as a source of rollouts, with the sampling parameters of one `begin`."""

    def __init__(self, engine: ServerEngine, server: Server, knobs: Mapping[str, Any]):
        self.concurrency = server.concurrency
        self.count = engine.count
        self._engine, self._server, self._knobs = engine, server, knobs

    def complete(self, request: RolloutRequest, enough: Callable[[list[int]], bool]) -> tuple[Completion, Future[None]]:
        return self._server.complete(request, self._knobs, enough)

    def renew(self, deadline: Deadline) -> bool:
        return self._engine.renew(self._server, deadline)

    def check(self, deadline: Deadline) -> None:
        self._engine.check(self._server, deadline)


def _answer(completion: Completion) -> Answer:
    return Answer(completion.prompt_ids, completion.token_ids, origin=completion.server)


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
