"""Holds the rollouts that servers generate, and hands out those that have ended while others are under way.

One thread per server asks for its share ([`~rollout_sft.rollouts.vllm.share`]); the tokens themselves are read in the
thread of the server's connections. What `wait` returns follows from the lengths of responses, never from the order in
which threads come to run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from threading import Condition
from typing import Any

from rollout_sft.rollouts.base import Rollout, RolloutRequest
from rollout_sft.rollouts.vllm.completion import Completion
from rollout_sft.rollouts.vllm.http import Deadline
from rollout_sft.rollouts.vllm.share import Response, Share, Source

Watch = Callable[[Sequence[int]], int | None]
"""Follows one response: given all its tokens so far, it returns how many of them are kept, or None to let it go on."""


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
        self._responses: list[Response] = []
        self._shares: list[Share] = []
        for source, requests in shares:
            first = len(self._responses)
            responses = [Response(first + i, request) for i, request in enumerate(requests)]
            self._responses += responses
            if responses:
                self._shares.append(Share(source, responses, self, deadline))
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

    def _until(self, reached: Callable[[Response], bool]) -> None:
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

    # --- the listener of the shares ------------------------------------------------------------------------------

    def follow(self, response: Response) -> Callable[[list[int]], bool]:
        """See [`~rollout_sft.rollouts.vllm.share.Listener`]."""
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

    def ended(self, response: Response, completion: Completion) -> None:
        """See `Listener`."""
        rollout = self._finish(response.index, completion)
        with self._changed:
            response.rollout, response.tokens = rollout, len(rollout.response_ids)
            self._ended_at = time.perf_counter()
            self._bar.update(1)
            self._changed.notify_all()

    def checked(self, responses: Sequence[Response]) -> None:
        """See `Listener`."""
        with self._changed:
            for response in responses:
                response.checked = True
            self._changed.notify_all()

    def forgotten(self, responses: Sequence[Response]) -> None:
        """See `Listener`."""
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


def _is_known(asked: set[Response], response: Response) -> bool:
    """Tells whether a response is known to be from the right weights, or to be asked for again."""
    return response not in asked or response.checked or response.rollout is None
