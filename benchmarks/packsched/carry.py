"""A carry buffer over many micro-steps: how full its packs are, and how many segments wait for how long.

Every micro-step brings 28 segments of 600 tokens on average, a little more than a pack of 16384 tokens takes, so the
buffer grows. A policy that prefers few long segments hoards the short ones, and it grows faster.
"""

import random
from dataclasses import dataclass

from benchmarks.packsched.workloads import CAP, realistic_lengths
from packsched import CarryBuffer
from packsched.selection import Policy

NEWCOMERS, MEAN, MICRO_STEPS = 28, 600, 250


@dataclass(frozen=True, kw_only=True)
class Carried:
    """What one run showed: the most segments that waited, the most pops one waited for, and the packs' mean fill."""

    peak: int
    longest_wait: int
    fill: float


def simulate(policy: Policy, kind: str, seed: int, micro_steps: int = MICRO_STEPS) -> Carried:
    """Runs one buffer; the segments of a kind and seed are the same for every policy."""
    rng = random.Random(seed)
    lengths = iter(realistic_lengths(rng, kind, NEWCOMERS * micro_steps, MEAN))
    buffer: CarryBuffer[int] = CarryBuffer(CAP, packing_buffer=10**6, policy=policy, min_fill_ratio=0)
    peak = longest_wait = 0
    fills = []
    for step in range(micro_steps):
        for _ in range(NEWCOMERS):
            buffer.add(step, next(lengths))
        pack = buffer.pop_pack()
        fills.append(pack.fill)
        peak = max(peak, len(buffer))
        longest_wait = max(longest_wait, *(step - added for added in pack.segments))
    return Carried(peak=peak, longest_wait=longest_wait, fill=sum(fills) / micro_steps)
