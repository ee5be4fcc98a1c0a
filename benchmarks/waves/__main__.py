"""`python -m benchmarks.waves`: seconds per step with and without `rollout_waves`, and which rule cuts the waves.

Everything is simulated (benchmarks/waves/step.py) and takes 20 seconds; the same numbers come out every time. The
costs are those of a real log of 17 steps of Qwen3-VL-2B (96 rollouts a step, cap 3,084 tokens, packing length 14,000):
134 s for the 3,084 iterations of the longest rollouts, 0.064 s for parsing, matching and encoding a sample, and for
training, by least squares over the steps, 0.051 s a pack and 0.361 ms a token.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.waves.step import Costs, Step, Window, iterations, simulate, waves_by_block, waves_by_length
from rollout_sft.step.wave_cuts import FULL_ENOUGH, wave_cuts

RESULTS = Path(__file__).resolve().parents[1] / "results" / "waves.md"
REAL = Costs(iteration=134.3 / 3084, sample=0.064, pack=0.051, token=0.3615e-3)
CAP, REQUESTS, WINDOWS = 3084, 96, 20
WAVES = (1, 2, 4, 8)
Draw = Callable[[random.Random, int], list[int]]


def early(rng: random.Random) -> int:
    """An answer that ends by itself: 140 tokens on average."""
    return max(8, min(CAP, round(rng.lognormvariate(4.62, 0.8))))


def never(rng: random.Random, n: int) -> list[int]:
    """The real log: 53 % run into the cap."""
    return [CAP if rng.random() < 0.53 else early(rng) for _ in range(n)]


def looping(rng: random.Random, n: int) -> list[int]:
    """The same with `end_rollouts: looping`: they begin to loop where others end, and repeat 30 tokens four times."""
    return [early(rng) + 4 * 30 if rng.random() < 0.53 else early(rng) for _ in range(n)]


def lognormal(rng: random.Random, n: int) -> list[int]:
    return [max(8, round(rng.lognormvariate(6, 0.8))) for _ in range(n)]


def capped(rng: random.Random, n: int) -> list[int]:
    return [min(CAP, max(8, round(rng.lognormvariate(7, 1)))) for _ in range(n)]


def heavy(rng: random.Random, n: int) -> list[int]:
    return [min(16000, round(200 * rng.paretovariate(1.3))) for _ in range(n)]


def equal(rng: random.Random, n: int) -> list[int]:
    return [1000] * n


SHAPES: dict[str, Draw] = {
    "the real log": never,
    "the real log, looping": looping,
    "log-normal": lognormal,
    "log-normal, capped": capped,
    "heavy tail": heavy,
    "all equal": equal,
}


def draw_windows(draw: Draw, slots: int, seed: int = 0) -> list[Window]:
    """Windows whose segments have a prompt, up to 51 tokens of the response, and what the target adds."""
    rng = random.Random(seed)
    windows = []
    for _ in range(WINDOWS + 1):
        responses = draw(rng, REQUESTS)
        if draw in (never, looping):
            segments = [rng.randint(2160, 2330) + min(51, length) + rng.randint(20, 260) for length in responses]
            packing_length, micro_steps = 14000, REQUESTS
        else:
            segments = [300 + length for length in responses]
            packing_length = max(*segments, 5 * sum(segments) // REQUESTS)
            micro_steps = sum(segments) // packing_length + 3
        windows.append(
            Window(
                responses=tuple(responses),
                segments=tuple(segments),
                packing_length=packing_length,
                micro_steps=micro_steps,
                slots=slots,
            )
        )
    return windows


def quantiles(lengths: Sequence[int], waves: int) -> list[int]:
    """Cuts with equally many responses in each wave."""
    ordered = sorted(lengths)
    return sorted({ordered[len(ordered) * k // waves - 1] for k in range(1, waves)} - {ordered[-1]})


def spaced(lengths: Sequence[int], waves: int) -> list[int]:
    """Cuts at equal distances."""
    return sorted({max(lengths) * k // waves for k in range(1, waves)})


BY_LENGTH = {"equal counts": quantiles, "equal distances": spaced, "`wave_cuts`": wave_cuts}


def run(windows: Sequence[Window], rule: str, waves: int, costs: Sequence[Costs], full: float) -> list[Step]:
    """Simulates every window but the first, whose lengths give the first cuts."""
    steps = []
    for before, window, cost in zip(windows, windows[1:], costs, strict=False):
        if rule == "blocks":
            parts = waves_by_block(window, waves)
        else:
            parts = waves_by_length(window, BY_LENGTH[rule](before.responses, waves))
        steps.append(simulate(window, parts, cost, full))
    return steps


def costs_of(windows: Sequence[Window], training: float) -> list[Costs]:
    """Costs with which training takes `training` times as long as the rollouts; a tenth of it is building."""
    found = []
    for window in windows[1:]:
        rollouts = max(iterations(window)[1]) * REAL.iteration
        seconds = rollouts * training
        found.append(
            Costs(
                iteration=REAL.iteration,
                sample=0.1 * seconds / REQUESTS,
                pack=0.01 * seconds / window.micro_steps,
                token=0.89 * seconds / sum(window.segments),
            )
        )
    return found


def table_head(first: str, columns: Sequence[str]) -> list[str]:
    return [f"| {first} | {' | '.join(columns)} |", "|---|" + "--:|" * len(columns)]


def real_table() -> list[str]:
    rows = [
        "| `end_rollouts` | K = 1 | 2 | 4 | 8 | one step off policy | rollouts alone |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, draw in (("never", never), ("looping", looping)):
        windows = draw_windows(draw, REQUESTS)
        costs = [REAL] * WINDOWS
        by_waves = [run(windows, "`wave_cuts`", waves, costs, FULL_ENOUGH) for waves in WAVES]
        seconds = [statistics.mean(step.seconds for step in steps) for steps in by_waves]
        late = statistics.mean(max(step.rollout, step.seconds - step.rollout) for step in by_waves[0])
        rollouts = statistics.mean(step.rollout for step in by_waves[0])
        rows.append(f"| {name} | " + " | ".join(f"{s:.0f} s" for s in (*seconds, late, rollouts)) + " |")
    return rows


def gain(draw: Draw, slots: int, rule: str, waves: int, training: float, full: float = FULL_ENOUGH) -> float:
    """How many times as long a step takes with one wave: the geometric mean over windows."""
    windows = draw_windows(draw, slots)
    costs = costs_of(windows, training)
    ones = run(windows, rule, 1, costs, full)
    return statistics.geometric_mean(
        one.seconds / step.seconds for one, step in zip(ones, run(windows, rule, waves, costs, full), strict=True)
    )


def rule_table(slots: int) -> list[str]:
    rules = [*BY_LENGTH, "blocks"]
    rows = table_head("training / rollouts = 1, K = 4", rules)
    for name, draw in SHAPES.items():
        rows.append(f"| {name} | " + " | ".join(f"{gain(draw, slots, rule, 4, 1.0):.2f}" for rule in rules) + " |")
    return rows


def ratio_table() -> list[str]:
    ratios = (0.1, 0.3, 1.0, 3.0, 10.0)
    rows = [
        "| training / rollouts, K = 4 | " + " | ".join(f"{r:g}" for r in ratios) + " |",
        "|---|" + "--:|" * len(ratios),
    ]
    for name, draw in SHAPES.items():
        found = (gain(draw, REQUESTS, "`wave_cuts`", 4, ratio) for ratio in ratios)
        rows.append(f"| {name} | " + " | ".join(f"{g:.2f}" for g in found) + " |")
    best = (f"{(1 + ratio) / max(1.0, ratio):.2f}" for ratio in ratios)
    return [*rows, f"| one step off policy | {' | '.join(best)} |"]


def full_table() -> list[str]:
    fills = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95)
    rows = [
        "| a pack trains early from, K = 4 | " + " | ".join(f"{f:g}" for f in fills) + " |",
        "|---|" + "--:|" * len(fills),
    ]
    for name, draw in SHAPES.items():
        if draw is equal:
            continue
        windows = draw_windows(draw, REQUESTS)
        costs = costs_of(windows, 1.0)
        one = run(windows, "`wave_cuts`", 1, costs, 0.0)
        cells = []
        for full in fills:
            steps = run(windows, "`wave_cuts`", 4, costs, full)
            faster = statistics.geometric_mean(a.seconds / b.seconds for a, b in zip(one, steps, strict=True))
            more = statistics.mean(b.packs - a.packs for a, b in zip(one, steps, strict=True))
            cells.append(f"{faster:.2f}, {more:+.1f}")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def main() -> None:
    parts = [
        "# Waves of rollouts, simulated",
        __doc__.partition("\n\n")[2].strip(),
        "## Seconds per step\n\nBuilding and training alone take what K = 1 takes without its rollouts. One step off "
        "policy trains on rollouts of older weights, so it takes the longer of both.",
        "\n".join(real_table()),
        f"## Which rule cuts\n\nHow many times as fast a step is as with one wave; {REQUESTS} requests.",
        *(f"The server runs {slots} at once:\n\n" + "\n".join(rule_table(slots)) for slots in (96, 48, 24)),
        "## Training against rollouts\n\n`wave_cuts`, all requests at once.",
        "\n".join(ratio_table()),
        "## When a pack is full enough\n\nHow many times as fast, and how many packs more a window takes.",
        "\n".join(full_table()),
    ]
    text = "\n\n".join(parts) + "\n"
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
