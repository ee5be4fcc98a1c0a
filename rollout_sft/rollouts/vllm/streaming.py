"""Holds the rollouts that servers generate, and hands out those that have ended while others are under way.

One thread per server starts requests, asks again and checks weights; the tokens themselves are read in the thread of
the server's connections. What `wait` returns follows from the lengths of responses, never from the order in which
threads come to run.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from threading import Condition, Thread
from typing import Any, Protocol

from rollout_sft.rollouts.base import Rollout, RolloutRequest
from rollout_sft.rollouts.vllm.completion import Completion
from rollout_sft.rollouts.vllm.http import Deadline, ServerError

Watch = Callable[[Sequence[int]], int | None]
"""Follows one response: given all its tokens so far, it returns how many of them are kept, or None to let it go on."""


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
class _Response:
    """What is known of one response. The condition of [`ServedRollouts`] guards it."""

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
        return self.rollout is not None or (tokens is not None and self.tokens > tokens)

    def forget(self) -> None:
        """Takes back what has arrived, so that it is asked for again."""
        self.completion, self.tokens, self.rollout, self.checked = None, 0, None, False
        self.epoch += 1  # what still arrives of it is of an earlier one


class ServedRollouts:
    """
    Implements [`StreamedRollouts`] for servers. Starts all requests at once.

    Args:
        shares (`Sequence[tuple[Source, Sequence[RolloutRequest]]]`):
            Each server and its requests, in the order of the requests.
        finish (`Callable[[int, Completion], Rollout]`):
            Makes the rollout of a request, by its index, from a completion that has ended.
        watch (`Callable[[], Watch]`, *optional*):
            Makes what follows one response. It is asked whenever tokens have arrived, and a request ends as soon as it
            gives a number; `finish` cuts off what arrived after that many tokens. The number is the same for every
            longer response with the same beginning, and no shorter one gets a number.
        deadline (`Deadline`):
            Ends the waiting: that of all calls of `wait` together.
        bar (`tqdm`):
            Counts the responses that have ended.
        report (`Callable[[Sequence[Completion], float], None]`, *optional*):
            Called at the end of each `wait` with the completions that have ended so far, and the seconds from the
            start to the last one's end.
    """

    def __init__(
        self,
        shares: Sequence[tuple[Source, Sequence[RolloutRequest]]],
        finish: Callable[[int, Completion], Rollout],
        *,
        watch: Callable[[], Watch] | None,
        deadline: Deadline,
        bar: Any,
        report: Callable[[Sequence[Completion], float], None] = lambda _, __: None,
    ):
        self._finish, self._watch, self._deadline, self._bar, self._report = finish, watch, deadline, bar, report
        deadline.pause()
        self._changed = Condition()
        self._threshold: int | None = None
        self._error: BaseException | None = None
        self._closed = False
        self._started_at = self._ended_at = time.perf_counter()
        self._responses: list[_Response] = []
        self._shares: list[_Share] = []
        for source, requests in shares:
            first = len(self._responses)
            responses = [_Response(first + i, request) for i, request in enumerate(requests)]
            self._responses += responses
            if responses:
                self._shares.append(_Share(source, responses, self, deadline))
        for share in self._shares:
            share.start()

    def wait(self, tokens: int | None) -> dict[int, Rollout]:
        """See [`StreamedRollouts`]. After an error everything is closed."""
        assert not self._closed, "these rollouts were closed"
        try:
            with self._changed:
                self._deadline.resume()
                try:
                    ready = self._wait(tokens)
                finally:
                    self._deadline.pause()
        except BaseException:
            self.close()
            raise
        return ready

    def _wait(self, tokens: int | None) -> dict[int, Rollout]:
        self._threshold = tokens
        while True:
            self._until(lambda response: response.has_passed(tokens))
            ready = {
                response.index: response.rollout
                for response in self._responses
                if response.rollout is not None
                and not response.returned
                and (tokens is None or len(response.rollout.response_ids) <= tokens)
            }
            unchecked = {self._responses[i] for i in ready if not self._responses[i].checked}
            if not unchecked:
                break
            for share in self._shares:
                if not share.responses.isdisjoint(unchecked):
                    share.check()
            self._until(partial(_is_known, unchecked))
        for i in ready:
            self._responses[i].returned = True
        ended = [r.completion for r in self._responses if r.rollout is not None and r.completion is not None]
        self._report(ended, self._ended_at - self._started_at)
        return ready

    def _until(self, reached: Callable[[_Response], bool]) -> None:
        """Waits until every response has reached a state, for the first error of a thread, or for the deadline."""

        def over() -> bool:
            return self._error is not None or all(map(reached, self._responses))

        in_time = self._changed.wait_for(over, timeout=max(self._deadline.seconds_left, 0.0))
        if not in_time and any(share.busy for share in self._shares):
            # What a thread asks besides tokens ends at the same deadline, and its error says what was late.
            in_time = self._changed.wait_for(over, timeout=1.0)
        if self._error is not None:
            raise self._error
        if not in_time:
            late = next(response for response in self._responses if not reached(response))
            raise self._deadline.passed(next(share.late for share in self._shares if late in share.responses))

    def close(self) -> None:
        """See [`StreamedRollouts`]. Returns when no thread of it runs any more, at the deadline at the latest."""
        self._closed = True
        for share in self._shares:
            share.close()
        for share in self._shares:
            share.join()
        self._bar.close()

    # --- what the threads report ---------------------------------------------------------------------------------

    def follow(self, response: _Response) -> Callable[[list[int]], bool]:
        """Returns what is called with all tokens of a response whenever some arrive; True ends the request."""
        watch, epoch = self._watch() if self._watch else None, response.epoch

        def arrived(token_ids: list[int]) -> bool:
            try:
                if watch is not None and watch(token_ids) is not None:
                    return True
            except Exception as error:
                self.failed(error)
                return True
            with self._changed:
                if response.epoch == epoch:
                    before, response.tokens = response.tokens, len(token_ids)
                    if self._threshold is not None and before <= self._threshold < response.tokens:
                        self._changed.notify_all()
            return False

        return arrived

    def ended(self, response: _Response, completion: Completion) -> None:
        """Takes a response that has ended."""
        rollout = self._finish(response.index, completion)
        with self._changed:
            response.rollout, response.tokens = rollout, len(rollout.response_ids)
            self._ended_at = time.perf_counter()
            self._bar.update(1)
            self._changed.notify_all()

    def checked(self, responses: Sequence[_Response]) -> None:
        """Takes note of responses whose server still had the right weights after they had ended."""
        with self._changed:
            for response in responses:
                response.checked = True
            self._changed.notify_all()

    def forgotten(self, responses: Sequence[_Response]) -> None:
        """Takes back responses that are asked for again."""
        with self._changed:
            self._bar.update(-sum(response.rollout is not None for response in responses))
            for response in responses:
                response.forget()
            self._changed.notify_all()

    def failed(self, error: BaseException) -> None:
        """Keeps the first error of a thread for `wait`."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()


def pause(attempts: int) -> float:
    """Returns the seconds to wait before the next attempt."""
    return min(2.0 ** (attempts - 1), 30.0)


def _is_known(asked: set[_Response], response: _Response) -> bool:
    """Tells whether a response is known to be from the right weights, or to be asked for again."""
    return response not in asked or response.checked or response.rollout is None


_CLOSE, _CHECK = "close", "check"


class _Share(Thread):
    """Asks one server for its share of the responses, until it is closed."""

    def __init__(self, source: Source, responses: Sequence[_Response], owner: ServedRollouts, deadline: Deadline):
        super().__init__(name="rollout-share", daemon=True)
        self.responses = set(responses)
        self.late, self.busy = "", False
        self._source, self._owner, self._deadline = source, owner, deadline
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        self._waiting = [(0.0, response.index, response) for response in responses]  # a heap: when, which
        self._under_way: dict[_Response, Future[None]] = {}
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
            self._owner.failed(error)
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
            self._owner.forgotten(again)
            for response in again:
                heapq.heappush(self._waiting, (0.0, response.index, response))

    def _start(self, response: _Response) -> None:
        completion, future = self._source.complete(response.request, self._owner.follow(response))
        self.late = f"{completion.address} did not answer in time."
        response.completion = completion
        self._under_way[response] = future
        future.add_done_callback(lambda done: self._inbox.put((response, completion, done)))

    def _end(self, response: _Response, completion: Completion, future: Future[None]) -> None:
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
            self._owner.ended(response, completion)

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
            self._owner.checked(ended)
        finally:
            self.busy = False

    def _ask_again(self, responses: Sequence[_Response], error: ServerError) -> None:
        """Puts off requests that failed in a way that may pass; raises any other error."""
        if not error.again:
            raise error
        self._owner.forgotten(responses)
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
