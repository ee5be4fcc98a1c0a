"""Splits the time of an optimizer step into phases whose sum is the step.

A phase is paused while another runs inside it, so no second is counted twice, and what belongs to no phase is named
too: `other`. Any code on the training thread may name its phase; outside of training nothing is measured.

    with phase("build"):         build for 2 s
        with phase("wait"):      wait for 1 s         ->  {"build": 2.0, "wait": 1.0, "other": 0.0}
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Stopwatch:
    """Measures one thread."""

    def __init__(self) -> None:
        self._phases = ["other"]
        self._seconds = {"other": 0.0}
        self._since = time.perf_counter()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Starts at zero; inside the block [`phase`] means this stopwatch."""
        self._phases = ["other"]
        self.take()
        before = _RUNNING.set(self)
        try:
            yield
        finally:
            _RUNNING.reset(before)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measures the block as `name`."""
        self._turn()
        self._phases.append(name)
        try:
            yield
        finally:
            self._turn()
            self._phases.pop()

    def outside(self, name: str) -> None:
        """Measures as `name` from now on whatever is in no phase."""
        self._turn()
        self._phases[0] = name

    def take(self) -> dict[str, float]:
        """Returns the seconds of each phase since the last call; their sum is the time since then."""
        self._turn()
        seconds, self._seconds = self._seconds, {"other": 0.0}
        return seconds

    def _turn(self) -> None:
        now = time.perf_counter()
        name = self._phases[-1]
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
        self._since = now


_RUNNING: ContextVar[Stopwatch | None] = ContextVar("running", default=None)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Measures the block as `name` of the step that is being trained, if any."""
    stopwatch = _RUNNING.get()
    if stopwatch is None:
        yield
        return
    with stopwatch.phase(name):
        yield
