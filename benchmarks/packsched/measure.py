"""Timing that holds on a shared machine: CPU seconds of this process, medians of five after a warm-up."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any


def cpu_ms(call: Callable[[], Any], repeats: int = 1) -> tuple[Any, float]:
    """The result, and the median CPU milliseconds of `repeats` calls (after one unmeasured call if several)."""
    if repeats > 1:
        call()
    taken = []
    gc.collect(0)
    for _ in range(repeats):
        start = time.process_time()
        result = call()
        taken.append((time.process_time() - start) * 1e3)
    return result, statistics.median(taken)


def share(flags: list[bool]) -> float:
    return 100 * sum(flags) / len(flags) if flags else float("nan")


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
