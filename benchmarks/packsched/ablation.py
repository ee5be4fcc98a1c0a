"""What each stage of `plan_window` earns: the same windows with one line of the planner's tables taken out.

A line is a stage of `packsched/planner/stages.py` or a bound of `packsched/planner/bounds.py`.
"""

import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from benchmarks.packsched.measure import table
from benchmarks.packsched.shapes import shaped_windows
from benchmarks.packsched.workloads import CAP, KINDS, realistic_lengths, realistic_window, tight_window
from packsched import InfeasibleWindowError, UndecidedWindowError, plan_window
from packsched.planner import bounds, stages

Window = tuple[list[int], int, int]
NAMES = tuple(dict.fromkeys([stage.name for stage in stages.STAGES] + [bound.name for bound in bounds.BOUNDS]))
HEADER = ["without", "placed", "proven fewest", "infeasible", "undecided", "CPU s"]


@contextmanager
def without(name: str | None) -> Iterator[None]:
    """Takes the lines of that name out of both tables."""
    every_stage, every_bound = stages.STAGES, bounds.BOUNDS
    stages.STAGES = tuple(stage for stage in every_stage if stage.name != name)
    bounds.BOUNDS = tuple(bound for bound in every_bound if name not in ("bounds", bound.name))
    try:
        yield
    finally:
        stages.STAGES, bounds.BOUNDS = every_stage, every_bound


def ablation(names: Iterable[str], quick: bool) -> str:
    """One table for each kind of window: every verdict, and the time, with all stages and without each name."""
    parts = []
    for title, windows, objective in _kinds(quick):
        rows = [[label, *_verdicts(windows, objective, name)] for label, name in _labels(names)]
        parts.append(f"## {len(windows):,} windows: {title}\n\n" + table(HEADER, rows))
        print(f"\n{parts[-1]}", flush=True)
    return "\n\n".join(parts)


def _labels(names: Iterable[str]) -> list[tuple[str, str | None]]:
    return [("- (all stages)", None), *((name, name) for name in names)]


def _kinds(quick: bool) -> Iterator[tuple[str, list[Window], str]]:
    rng = random.Random(2)
    realistic = [realistic_window(rng) for _ in range(1000 if quick else 4000)]
    yield "realistic, dense", realistic, "dense"
    yield "realistic, balanced", realistic[: 100 if quick else 300], "balanced"
    shaped = [
        (window.lengths, window.packing_length, window.micro_steps)
        for window in shaped_windows(300 if quick else 1500, seed=2)
    ]
    yield "fifteen shapes, nearly full, dense", shaped, "dense"
    few = [_few_a_pack(rng, rng.randint(4, 14)) for _ in range(60 if quick else 600)]
    yield "1.8 to 4 segments a pack, 88 to 99.5 % full", few, "dense"
    for title, slack, sizes in (
        ("cut, 1 % slack, 3 to 16 a pack", 0.01, (3, 4, 8, 16)),
        ("cut, 0 slack, 8 and 16 a pack", 0.0, (8, 16)),
        ("cut, 0 slack, 3 and 4 a pack", 0.0, (3, 4)),
    ):
        yield title, list(_cut(slack, sizes, 1 if quick else 5)), "dense"


def _few_a_pack(rng: random.Random, packs: int) -> Window:
    n = int(packs * rng.uniform(1.8, 4))
    mean = rng.uniform(0.88, 0.995) * packs * CAP / n
    return realistic_lengths(rng, rng.choice(KINDS), n, mean), CAP, packs


def _cut(slack: float, sizes: tuple[int, ...], count: int) -> Iterator[Window]:
    rng = random.Random(3)
    for per in sizes:
        for packs in (8, 16, 32):
            for even in (False, True):
                for _ in range(count):
                    yield tight_window(rng, packs, per, slack, even=even)


def _verdicts(windows: list[Window], objective: str, name: str | None) -> list[str]:
    found: Counter[str] = Counter()
    start = time.process_time()
    with without(name):
        for lengths, cap, micro_steps in windows:
            try:
                plan = plan_window(lengths, cap, micro_steps, objective=objective)  # type: ignore[arg-type]
                found["placed"] += 1
                found["proven"] += plan.optimal
            except InfeasibleWindowError:
                found["infeasible"] += 1
            except UndecidedWindowError:
                found["undecided"] += 1
    seconds = time.process_time() - start
    return [*(str(found[verdict]) for verdict in ("placed", "proven", "infeasible", "undecided")), f"{seconds:.2f}"]
