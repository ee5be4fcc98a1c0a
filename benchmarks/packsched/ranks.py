"""Levels many ranks with `plan_ranks` and with what others use, and counts how often those break the cap of a pack.

The others distribute all segments over the ranks by cost, and each rank's over its packs: the longest segment to the
least loaded (LPT), or by the largest differences (Karmarkar-Karp). Neither knows a cap, and nearly every segment moves.
"""

import heapq
import statistics
import time

import numpy as np

from benchmarks.packsched.peers import karmarkar_karp, largest_to_least_loaded
from packsched import PackingError, plan_ranks, plan_window
from packsched.costs import DEFAULT_COST

CAP, MICRO_STEPS = 14000, 8
MOST_KARMARKAR_KARP = 64
"""With more ranks, Karmarkar-Karp with its members takes minutes."""


def draw(seed: int, ranks: int, segments: int, load: float, micro_steps: int = MICRO_STEPS) -> list[list[int]]:
    """Log-normal lengths (sigma .6, none over the cap) that fill the packs of all ranks to `load`."""
    lens = np.random.default_rng(seed).lognormal(0, 0.6, (ranks, segments))
    for _ in range(5):
        lens = np.clip(lens * (load * CAP * micro_steps * ranks / lens.sum()), 8, CAP)
    return lens.astype(int).tolist()


def stragglers(most_ranks: int = 4096, segments: int = 32, load: float = 0.75) -> str:
    """Returns a Markdown table: one line for each number of ranks.

    Args:
        most_ranks: The largest number of ranks.
        segments: Segments of each rank, for 8 packs.
        load: Tokens over the capacity of all packs of all ranks.
    """
    lines = [
        f"| ranks of {segments} segments | as drawn | do not fit alone | plan_ranks | moved (least) | CPU ms | LPT | "
        "over the cap | Karmarkar-Karp | over the cap |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for ranks in (n for n in (8, 64, 1024, 4096) if n <= most_ranks):
        seeds = range(20 if ranks <= MOST_KARMARKAR_KARP else 1)
        rows = [_row(draw(seed, ranks, segments, load)) for seed in seeds]
        before, misfits, after, moved, least, ms, lpt, lpt_over, kk, kk_over = zip(*rows, strict=True)
        kk_cells = (f"{max(kk):.3f}", f"{statistics.mean(kk_over):.1%}") if None not in kk else ("-", "-")
        cells = [
            str(ranks),
            f"{statistics.mean(before):.2f}",
            f"{statistics.mean(misfits):.1%}",
            f"{max(after):.3f}",
            f"{statistics.mean(moved):.1%} ({statistics.mean(least):.1%})",
            f"{statistics.median(ms):.0f}",
            f"{max(lpt):.3f}",
            f"{statistics.mean(lpt_over):.1%}",
            *kk_cells,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _row(lens: list[list[int]]) -> tuple:
    start = time.process_time()
    plan = plan_ranks(lens, CAP, MICRO_STEPS)
    ms = 1000 * (time.process_time() - start)
    tokens = sum(map(sum, lens))
    lpt = _level(lens)
    kk: tuple = (None, None)
    if len(lens) <= MOST_KARMARKAR_KARP:
        everything = [length for rank in lens for length in rank]
        by_cost = karmarkar_karp(list(map(DEFAULT_COST, everything)), 0, len(lens))
        kk = _judge([[_LENGTHS[cost] for cost in rank] for rank in by_cost], karmarkar_karp)
    return (
        plan.straggler_before,
        sum(not _fits(rank) for rank in lens) / len(lens),
        plan.straggler,
        plan.moved_tokens / tokens,
        plan.least_moved_tokens / tokens,
        ms,
        *_judge(lpt, largest_to_least_loaded),
        *kk,
    )


_LENGTHS = {DEFAULT_COST(length): length for length in range(1, CAP + 1)}


def _level(lens: list[list[int]]) -> list[list[int]]:
    """The dearest segment to the cheapest rank so far."""
    heap: list[tuple[int, int]] = [(0, rank) for rank in range(len(lens))]
    ranks: list[list[int]] = [[] for _ in lens]
    for length in sorted((length for rank in lens for length in rank), reverse=True):
        cost, rank = heap[0]
        ranks[rank].append(length)
        heapq.heapreplace(heap, (cost + DEFAULT_COST(length), rank))
    return ranks


def _judge(ranks: list[list[int]], level) -> tuple[float, float]:
    """Returns the straggler, and the share of ranks with a pack over the cap."""
    costs = [sum(map(DEFAULT_COST, rank)) for rank in ranks]
    over = sum(max(map(sum, level(rank, CAP, MICRO_STEPS))) > CAP for rank in ranks)
    return max(costs) * len(costs) / sum(costs), over / len(ranks)


def _fits(lens: list[int]) -> bool:
    try:
        plan_window(lens, CAP, MICRO_STEPS)
    except PackingError:
        return False
    return True


if __name__ == "__main__":
    print(stragglers(4096, 32, 0.75), stragglers(1024, 16, 0.9), stragglers(1024, 32, 0.97), sep="\n\n")
