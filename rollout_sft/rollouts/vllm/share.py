"""Asks one server for its share of the rollouts of a window: starts requests, asks again, and checks weights."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Protocol

from rollout_sft.rollouts.base import Rollout, RolloutRequest
from rollout_sft.rollouts.vllm.completion import Completion
from rollout_sft.rollouts.vllm.http import Deadline, ServerError


class Source(Protocol):
    """
    One server as a source of rollouts.

    Attributes:
        concurrency (`int`):
            Requests under way at a time.
    """

    concurrency: int

    def complete(self, request: RolloutRequest, enough: Callable[[list[int]], bool]) -> tuple[Completion, Future[None]]:
        """Starts one request; see `Server.complete`."""
        ...

    def renew(self, deadline: Deadline) -> bool:
        """Gives the server the weights if it has others; returns whether it had."""
        ...

    def check(self, deadline: Deadline) -> None:
        """Raises [`ServerError`] if the server has other weights than it was given."""
        ...

    def count(self, attempts: int, error: ServerError) -> None:
        """Counts a failure that may pass, or raises it as the last one that was allowed."""
        ...


@dataclass(slots=True, eq=False)
class Response:
    """What is known of one response. The lock of its [`Listener`] guards it."""

    index: int
    request: RolloutRequest
    completion: Completion | None = None
    tokens: int = 0
    rollout: Rollout | None = None
    checked: bool = False
    returned: bool = False
    attempts: int = 0
    epoch: int = 0

    def has_passed(self, tokens: int | None) -> bool:
        """Returns whether it has ended, or has more than that many tokens."""
        return self.rollout is not None or (tokens is not None and self.tokens > tokens)

    def forget(self) -> None:
        """Takes back what has arrived, so that it is asked for again."""
        self.completion, self.tokens, self.rollout, self.checked = None, 0, None, False
        self.epoch += 1  # what still arrives of it is of an earlier one


class Listener(Protocol):
    """What a share reports to, from its thread and from that of the server's connections."""

    def follow(self, response: Response) -> Callable[[list[int]], bool]:
        """Returns what is called with all tokens of a response whenever some arrive; True ends the request."""
        ...

    def ended(self, response: Response, completion: Completion) -> None:
        """Takes a response that has ended."""
        ...

    def checked(self, responses: Sequence[Response]) -> None:
        """Takes note of responses whose server still had the right weights after they had ended."""
        ...

    def forgotten(self, responses: Sequence[Response]) -> None:
        """Takes back responses that are asked for again."""
        ...

    def failed(self, error: BaseException) -> None:
        """Takes an error that ends the share."""
        ...


def pause(attempts: int) -> float:
    """Returns the seconds to wait before the next attempt."""
    return min(2.0 ** (attempts - 1), 30.0)


_CLOSE, _CHECK = "close", "check"


class Share(Thread):
    """
    Asks one server for its share of the responses, until it is closed.

    Args:
        source (`Source`):
            The server.
        responses (`Sequence[Response]`):
            What is asked for, in the order in which it is started.
        listener (`Listener`):
            What hears of tokens, ends and errors.
        deadline (`Deadline`):
            Ends what is asked besides tokens: weights and their check.

    Attributes:
        responses (`set[Response]`):
            The share.
        late (`str`):
            Says what was late, should the deadline pass now.
        busy (`bool`):
            Whether the thread waits for the server's weights or their check.
    """

    def __init__(self, source: Source, responses: Sequence[Response], listener: Listener, deadline: Deadline):
        super().__init__(name="rollout-share", daemon=True)
        self.responses = set(responses)
        self.late, self.busy = "", False
        self._source, self._listener, self._deadline = source, listener, deadline
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        self._waiting = [(0.0, response.index, response) for response in responses]  # a heap: when, which
        self._under_way: dict[Response, Future[None]] = {}
        self._renewed = False
        self._closing = False

    def check(self) -> None:
        """Has the weights checked under which responses have ended."""
        self._inbox.put(_CHECK)

    def close(self) -> None:
        """Ends what is under way."""
        self._closing = True
        self._inbox.put(_CLOSE)

    def run(self) -> None:
        """Works until it is closed or something fails for good."""
        try:
            while not self._closing:
                self._start_due()
                seconds = None
                if self._waiting and self._has_room():
                    seconds = max(self._waiting[0][0] - time.monotonic(), 0.0)
                try:
                    message = self._inbox.get(timeout=seconds)
                except Empty:
                    continue
                if message is _CHECK:
                    self._check()
                elif message is not _CLOSE:
                    self._end(*message)
        except BaseException as error:
            self._listener.failed(error)
        finally:
            self._stop()

    def _has_room(self) -> bool:
        return len(self._under_way) < self._source.concurrency

    def _start_due(self) -> None:
        """Starts the requests whose time has come, in their order and as many as may run at a time."""
        while self._has_room() and self._waiting and self._waiting[0][0] <= time.monotonic():
            if not self._renewed:
                self._renew()
                continue
            _, _, response = heapq.heappop(self._waiting)
            self._start(response)

    def _renew(self) -> None:
        """Makes sure of the weights before anything is asked; whoever waits for it shares its failure."""
        self.busy = True
        try:
            had_others = self._source.renew(self._deadline)
        except ServerError as error:
            now, due = time.monotonic(), []
            while self._waiting and self._waiting[0][0] <= now:
                due.append(heapq.heappop(self._waiting)[2])
            self._ask_again(due, error)
            return
        finally:
            self.busy = False
        self._renewed = True
        if had_others:  # nothing that is not returned yet is known to be from the right weights
            self._stop()
            waiting = {response for _, _, response in self._waiting}
            again = [r for r in self.responses - waiting if not r.returned]
            self._listener.forgotten(again)
            for response in again:
                heapq.heappush(self._waiting, (0.0, response.index, response))

    def _start(self, response: Response) -> None:
        completion, future = self._source.complete(response.request, self._listener.follow(response))
        self.late = f"{completion.address} did not answer in time."
        response.completion = completion
        self._under_way[response] = future
        future.add_done_callback(lambda done: self._inbox.put((response, completion, done)))

    def _end(self, response: Response, completion: Completion, future: Future[None]) -> None:
        """Takes the end of a request; one that was stopped is passed over."""
        if self._under_way.get(response) is not future:
            return
        del self._under_way[response]
        try:
            future.result()
        except ServerError as error:
            self._renewed = False
            self._ask_again([response], error)
        else:
            self._listener.ended(response, completion)

    def _check(self) -> None:
        """Checks the weights after responses have ended; those of other weights are asked for again."""
        ended = [response for response in self.responses if response.rollout is not None and not response.returned]
        self.busy = True
        try:
            self._source.check(self._deadline)
        except ServerError as error:
            self._renewed = False
            self._ask_again(ended, error)
        else:
            self._listener.checked(ended)
        finally:
            self.busy = False

    def _ask_again(self, responses: Sequence[Response], error: ServerError) -> None:
        """Puts off requests that failed in a way that may pass; raises any other error."""
        if not error.again:
            raise error
        self._listener.forgotten(responses)
        for response in responses:
            response.attempts += 1
            self._source.count(response.attempts, error)
            due = time.monotonic() + pause(response.attempts)
            heapq.heappush(self._waiting, (due, response.index, response))
        self.late = str(error)  # until it is asked again

    def _stop(self) -> None:
        """Ends the requests that are under way."""
        stopped, self._under_way = self._under_way, {}
        for future in stopped.values():
            future.cancel()
