"""`python -m benchmarks.packsched.shapes`: what `plan_window` leaves undecided, by shape of the lengths and load.

Takes 30,000 windows of fifteen shapes, most of them with packs that have to be nearly full. Shows what `dense` decides,
how long it takes, and whether `balanced` places a window that `dense` leaves undecided. `--count` takes fewer windows,
`--write` stores docs/benchmarks/shapes.md.
"""

import argparse
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from benchmarks.packsched.measure import quantile, share, table
from packsched import InfeasibleWindowError, UndecidedWindowError, plan_window

CAPS = (2048, 4096, 8192, 14000, 16384, 32768)
# Each: a range of loads, and how many of twenty windows are in it.
LOADS = (
    ((0.5, 0.9), 2),
    ((0.9, 0.97), 4),
    ((0.97, 0.99), 5),
    ((0.99, 0.995), 4),
    ((0.995, 0.999), 3),
    ((0.999, 1.0), 2),
)

Lengths = Callable[[random.Random, int], list[float]]


def _each(draw: Callable[[random.Random], float]) -> Lengths:
    return lambda rng, n: [draw(rng) for _ in range(n)]


def _prompt_and_answers(rng: random.Random, n: int) -> list[float]:
    prompt = rng.uniform(0.5, 4)
    return [prompt + rng.lognormvariate(0, 0.8) for _ in range(n)]


def _two_clusters(rng: random.Random, n: int) -> list[float]:
    long, share = rng.uniform(1.5, 5), rng.uniform(0.2, 0.8)
    return [rng.gauss(long if rng.random() < share else 1, 0.05) for _ in range(n)]


def _truncated(rng: random.Random, n: int) -> list[float]:
    """Answers that end at `max_new_tokens`: all of the longest have the same length."""
    drawn = [rng.lognormvariate(0, 0.7) for _ in range(n)]
    most = quantile(drawn, rng.uniform(0.5, 0.9))
    return [0.3 + min(one, most) for one in drawn]


def _few_lengths(rng: random.Random, n: int) -> list[float]:
    chosen = [rng.uniform(0.3, 3) for _ in range(rng.randint(2, 6))]
    return [rng.choice(chosen) for _ in range(n)]


def _nearly_equal_with_tail(rng: random.Random, n: int) -> list[float]:
    return [rng.gauss(1, 0.01) if rng.random() < 0.8 else rng.uniform(1, 2) for _ in range(n)]


def _of_image_sizes(rng: random.Random, n: int) -> list[float]:
    sizes = [rng.uniform(0.5, 2.5) for _ in range(3)]
    return [rng.choice(sizes) + rng.expovariate(8) for _ in range(n)]


SHAPES: dict[str, Lengths] = {
    "uniform": _each(lambda rng: rng.uniform(0.1, 1.9)),
    "log-normal": _each(lambda rng: rng.lognormvariate(0, 0.6)),
    "narrow log-normal": _each(lambda rng: rng.lognormvariate(0, 0.35)),
    "exponential": _each(lambda rng: 0.05 + rng.expovariate(1)),
    "long tail": _each(lambda rng: rng.paretovariate(1.6)),
    "bimodal": _each(lambda rng: max(0.1, rng.gauss(3, 0.5) if rng.random() < 0.3 else rng.gauss(0.6, 0.15))),
    # The log behind the requirement: prompts of 2246 (90 % up to 2278), then 190 tokens (90 % up to 410).
    "the real log": _each(lambda rng: rng.gauss(2246, 25) + rng.lognormvariate(4.95, 0.77)),
    "prompt and answers": _prompt_and_answers,
    "two clusters": _two_clusters,
    "truncated answers": _truncated,
    "few lengths": _few_lengths,
    "images of three sizes": _of_image_sizes,
    "nearly equal": _each(lambda rng: rng.gauss(1, 0.03)),
    "nearly equal with a tail": _nearly_equal_with_tail,
    "near half a pack": _each(lambda rng: rng.gauss(1, 0.12) if rng.random() < 0.9 else rng.uniform(0.1, 0.5)),
}


@dataclass(frozen=True)
class ShapedWindow:
    """One window of the sample."""

    shape: str
    load: float
    lengths: list[int]
    packing_length: int
    micro_steps: int


def shaped_windows(count: int, seed: int = 1) -> Iterator[ShapedWindow]:
    """Yields that many windows, all shapes in turn: 2 to 64 packs, 2 to 24 segments a pack on average."""
    rng = random.Random(seed)
    names = list(SHAPES)
    loads = [bounds for bounds, weight in LOADS for _ in range(weight)]
    for at in range(count):
        shape, cap = names[at % len(names)], rng.choice(CAPS)
        load = rng.uniform(*rng.choice(loads))
        micro_steps = round(2 * 32 ** rng.random())
        per_pack = 2 * 12 ** rng.random()
        if shape == "near half a pack":
            per_pack = rng.uniform(2, 2.2)
        elif shape == "the real log" and rng.random() < 0.5:
            cap, per_pack = 14000, 5.55
        n = max(micro_steps, round(micro_steps * per_pack))
        raw = SHAPES[shape](rng, n)
        scale = load * micro_steps * cap / sum(raw)
        lengths = [max(1, min(cap, round(scale * one))) for one in raw]
        yield ShapedWindow(shape, sum(lengths) / (micro_steps * cap), lengths, cap, micro_steps)


@dataclass(frozen=True)
class Verdict:
    """What became of one window, and the processor milliseconds that it took."""

    window: ShapedWindow
    verdict: str
    proven_fewest: bool
    ms: float


def decide(window: ShapedWindow, objective: str = "dense") -> Verdict:
    """Plans one window."""
    start = time.process_time()
    fewest = False
    try:
        plan = plan_window(window.lengths, window.packing_length, window.micro_steps, objective=objective)  # type: ignore[arg-type]
        verdict, fewest = "placed", plan.optimal
    except InfeasibleWindowError:
        verdict = "infeasible"
    except UndecidedWindowError:
        verdict = "undecided"
    return Verdict(window, verdict, fewest, 1e3 * (time.process_time() - start))


def report(verdicts: list[Verdict]) -> str:
    """The tables by shape and by load, and what `balanced` does with the windows that are left."""
    left = [one.window for one in verdicts if one.verdict == "undecided"]
    placed = sum(decide(window, "balanced").verdict == "placed" for window in left)
    by_shape = [_row(shape, (one for one in verdicts if one.window.shape == shape)) for shape in SHAPES]
    by_load = [
        _row(
            f"{low} to {high}",
            (one for one in verdicts if low <= one.window.load < high or (high == 1 <= one.window.load)),
        )
        for (low, high), _ in LOADS
    ]
    header = ["windows", "placed", "proven fewest", "infeasible", "undecided", "median ms", "99 % under", "slowest"]
    return "\n\n".join(
        [
            f"`balanced` places {placed} of the {len(left)} windows that `dense` leaves undecided.",
            table(["shape", *header], [*by_shape, _row("all", verdicts)]),
            table(["load", *header], by_load),
        ]
    )


def _row(name: str, chosen: Iterable[Verdict]) -> list[str]:
    verdicts = list(chosen)
    taken = [one.ms for one in verdicts]
    shares = [share([one.verdict == verdict for one in verdicts]) for verdict in ("placed", "infeasible", "undecided")]
    proven = share([one.proven_fewest for one in verdicts if one.verdict == "placed"])
    return [
        name,
        f"{len(verdicts):,}",
        *(f"{value:.1f} %" for value in (shares[0], proven, shares[1])),
        f"{shares[2]:.2f} %",
        *(f"{value:.2f}" for value in (quantile(taken, 0.5), quantile(taken, 0.99), max(taken, default=0.0))),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packsched.shapes", description=__doc__)
    parser.add_argument("--count", type=int, default=30_000, help="windows in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="store docs/benchmarks/shapes.md")
    options = parser.parse_args()
    text = report([decide(window) for window in shaped_windows(options.count, options.seed)])
    print(text)
    if options.write:
        from benchmarks.packsched.__main__ import DOCS, machine

        head = (
            "# Windows of fifteen shapes\n\n"
            f"`python -m benchmarks.packsched.shapes --count {options.count} --write`, one run on one machine: "
            f"{machine()}. Processor milliseconds, one call each.\n\n"
        )
        (DOCS / "benchmarks" / "shapes.md").write_text(head + text + "\n")


if __name__ == "__main__":
    main()
