"""Simulates one optimizer step: a server that generates, a trainer that builds and trains, and what waits for what.

A running response gets one token per iteration of the server; an iteration takes the same time however many run, up to
`slots`, beyond which requests wait in the order of the samples. The trainer does one thing at a time: it waits for a
wave, builds its segments, plans them with what earlier waves left, and trains the packs that are full enough.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from packsched import InfeasibleWindowError, UndecidedWindowError, plan_window


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of what a step does: per token of a running response, sample built, pack trained and token trained."""

    iteration: float
    sample: float
    pack: float
    token: float


@dataclass(frozen=True, kw_only=True)
class Window:
    """The responses of a window: their lengths, those of the segments that they become, and what holds them."""

    responses: tuple[int, ...]
    segments: tuple[int, ...]
    packing_length: int
    micro_steps: int
    slots: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a simulated step took."""

    seconds: float
    rollout: float
    waited: float
    packs: int


def iterations(window: Window) -> tuple[list[int], list[int]]:
    """Returns the iteration at which each response starts and ends."""
    running: list[int] = []
    starts = []
    for length in window.responses:
        start = heapq.heappop(running) if len(running) == window.slots else 0
        heapq.heappush(running, start + length)
        starts.append(start)
    return starts, [start + length for start, length in zip(starts, window.responses, strict=True)]


def waves_by_length(window: Window, cuts: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Returns for each wave the iteration at which it is complete, and its responses: those within its cut."""
    starts, ends = iterations(window)
    waves, low = [], 0
    for cut in (*cuts, max((*window.responses, *cuts)) + 1):
        inside = [i for i, length in enumerate(window.responses) if low < length <= cut]
        passed = max(min(end, start + cut + 1) for start, end in zip(starts, ends, strict=True))
        waves.append((passed, inside))
        low = cut
    return waves


def waves_by_block(window: Window, waves: int) -> list[tuple[int, list[int]]]:
    """Returns the same for blocks of equally many samples, in their order."""
    _, ends = iterations(window)
    n = len(ends)
    blocks = [list(range(n * k // waves, n * (k + 1) // waves)) for k in range(waves)]
    return [(max((ends[i] for i in block), default=0), block) for block in blocks]


def simulate(window: Window, waves: Sequence[tuple[int, list[int]]], costs: Costs, full: float) -> Step:
    """
    Runs one step.

    Args:
        window: The responses.
        waves: For each wave, the iteration at which it is complete, and its responses.
        costs: What each part takes.
        full: How full a pack is that trains before the last wave.
    """
    now = waited = 0.0
    packs = 0
    pool: list[int] = []
    for number, (complete, inside) in enumerate(waves, 1):
        ready = complete * costs.iteration
        waited += max(0.0, ready - now)
        now = max(now, ready) + len(inside) * costs.sample
        pool += [window.segments[i] for i in inside]
        last = number == len(waves)
        left = []
        for pack in plan(pool, window.packing_length, window.micro_steps - packs if last else len(pool)):
            tokens = sum(pool[i] for i in pack)
            if last or tokens >= full * window.packing_length:
                packs += 1
                now += costs.pack + tokens * costs.token
            else:
                left += pack
        pool = [pool[i] for i in sorted(left)]
    return Step(
        seconds=now, rollout=max(complete for complete, _ in waves) * costs.iteration, waited=waited, packs=packs
    )


def plan(segments: Sequence[int], packing_length: int, micro_steps: int) -> list[tuple[int, ...]]:
    """Returns the non-empty packs, more than `micro_steps` where they do not fit into fewer."""
    packs = max(1, micro_steps)
    while True:
        try:
            return [pack for pack in plan_window(segments, packing_length, packs).packs if pack]
        except (InfeasibleWindowError, UndecidedWindowError):
            packs += 1
