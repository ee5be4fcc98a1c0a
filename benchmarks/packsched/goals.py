"""The goals of the project, measured: each with its target, its value and `met` or `short`."""

import random
import statistics
from collections.abc import Iterator

from benchmarks.packsched.carry import MICRO_STEPS, simulate
from benchmarks.packsched.measure import cpu_ms, quantile, share, table
from benchmarks.packsched.peers import first_fit_decreasing
from benchmarks.packsched.workloads import CAP, KINDS, realistic_lengths, realistic_window, tight_window
from packsched import InfeasibleWindowError, UndecidedWindowError, plan_window, select
from packsched.planner.levelling import longest_pack_bound
from packsched.ranks import plan_ranks

Row = tuple[str, str, str, bool]


def goals_table(quick: bool) -> tuple[str, bool]:
    """The table, and whether every goal is met."""
    rows = [
        row for group in (selection, carrying, windows, tight, hopeless, balanced, large, ranks) for row in group(quick)
    ]
    lines = [[name, target, value, "met" if met else "**short**"] for name, target, value, met in rows]
    return table(["goal", "target", "measured", ""], lines), all(row[3] for row in rows)


# Most milliseconds for `select(policy="optimal")` by segments in the buffer, at a packing length of 16384.
_SELECT_MS = {16: 0.1, 32: 0.1, 64: 0.1, 256: 0.15, 1024: 0.3, 4096: 0.6}


def selection(quick: bool) -> Iterator[Row]:
    rng = random.Random(1)
    # Short rollouts (27 a pack), long ones (7 a pack), and both in packs eight times as long (7 and 56 a pack).
    for mean, cap, sizes in (
        (600, 16384, (16, 32, 64, 256, 1024, 4096)),
        (2400, 16384, (16, 32, 64, 256, 1024, 4096)),
        (131072 / 7, 131072, (16, 64, 256, 1024)),
        (16384 / 7, 131072, (64, 256, 1024)),
    ):
        for n in sizes:
            exact, ratios = [], []
            for case in range(8 if quick else 24 if cap / mean < 10 else 12):
                lens = realistic_lengths(rng, KINDS[case % 4], n, mean, cap)
                exact.append(cpu_ms(lambda: select(lens, cap, policy="optimal"), 5)[1])  # noqa: B023
                # Next to an oldest segment that fills the pack there is nothing to choose: all policies are one then.
                if n >= 64 and case < 4 and lens[0] < cap:
                    # Half a second a call at 4096 segments: once, after the warm-up of smaller sizes.
                    repeats = 3 if n <= 1024 else 1
                    rule = cpu_ms(lambda: select(lens, cap, policy="binpacking"), repeats)[1]  # noqa: B023
                    ratios.append(exact[-1] / rule)
            limit = 1.0 if cap > 16384 else _SELECT_MS[n]
            value = statistics.median(exact)
            name = f"{n} segments, {cap}, {cap / mean:.0f} a pack"
            measured = f"{value:.3f} ms (slowest {max(exact):.2f})"
            yield f"select optimal, {name}", f"<= {limit} ms", measured, value <= limit
            if ratios:
                measured = f"{statistics.median(ratios):.2f} ({max(ratios):.2f} at most)"
                yield f"its time over `binpacking`'s, {name}", "<= 1", measured, max(ratios) <= 1
    slowest = 0.0
    for name, lens in adversarial(rng).items():
        taken = cpu_ms(lambda: select(lens, CAP, policy="optimal"), 5)[1]  # noqa: B023
        if taken > slowest:
            slowest, slowest_name = taken, name
    yield "adversarial buffers of 1024", "<= 10 ms", f"{slowest:.1f} ms ({slowest_name})", slowest <= 10


def carrying(quick: bool) -> Iterator[Row]:
    for kind in KINDS:
        optimal, fifo = simulate("optimal", kind, 0), simulate("fifo", kind, 0)
        value = f"{optimal.peak} against {fifo.peak} (fill {optimal.fill:.4f} against {fifo.fill:.4f})"
        name = f"most segments waiting in {MICRO_STEPS} micro-steps, `optimal` against `fifo`, {kind}"
        yield name, "<= `fifo`'s", value, optimal.peak <= fifo.peak


def adversarial(rng: random.Random) -> dict[str, list[int]]:
    return {
        "even lengths, odd room": [1] + [2 * rng.randint(50, 4000) for _ in range(1023)],
        "hundreds a pack": [rng.randint(16, 40) for _ in range(1024)],
        "dozens a pack": [rng.randint(100, 300) for _ in range(1024)],
        "multiples of 64 and ones": [193] + [64 * rng.randint(1, 120) for _ in range(999)] + [1] * 24,
        "all equal": [777] * 1024,
        "six lengths": [rng.choice([4099, 4111, 4127, 3001, 3011, 2999]) for _ in range(1024)],
        "over a third": [rng.randint(5462, 8191) for _ in range(1024)],
    }


def windows(quick: bool) -> Iterator[Row]:
    rng = random.Random(2)
    taken, decided, proven = [], [], []
    for _ in range(300 if quick else 2000):
        lens, cap, micro_steps = realistic_window(rng)

        def decide() -> str | bool:
            try:
                return plan_window(lens, cap, micro_steps).optimal  # noqa: B023
            except InfeasibleWindowError:
                return "infeasible"
            except UndecidedWindowError:
                return "undecided"

        verdict, ms = cpu_ms(decide)
        taken.append(ms)
        decided.append(verdict != "undecided")
        if isinstance(verdict, bool):
            proven.append(verdict)
    yield (
        "realistic windows decided",
        ">= 99.95 %",
        f"{share(decided):.2f} % of {len(decided)}",
        share(decided) >= 99.95,
    )
    fast = share([ms < 1 for ms in taken])
    value = f"{fast:.1f} % (median {statistics.median(taken):.2f} ms)"
    yield "... under 1 ms", ">= 97 %", value, fast >= 97
    yield "... `dense` proven fewest", ">= 99 %", f"{share(proven):.1f} %", share(proven) >= 99


def tight(quick: bool) -> Iterator[Row]:
    rng = random.Random(3)
    count = 5 if quick else 20

    def run(per: int, packs: int, slack: float, even: bool) -> tuple[list[bool], list[float]]:
        placed, taken = [], []
        for _ in range(count):
            lens, cap, micro_steps = tight_window(rng, packs, per, slack, even=even)

            def place() -> bool:
                try:
                    return bool(plan_window(lens, cap, micro_steps).packs)  # noqa: B023
                except UndecidedWindowError:
                    return False

            found, ms = cpu_ms(place)
            placed.append(found)
            taken.append(ms)
        return placed, taken

    placed, taken = [], []
    for per in (3, 4, 6, 10):
        for packs in (8, 16, 32):
            for slack in (0.01, 0.02):
                for even in (False, True):
                    found, ms = run(per, packs, slack, even)
                    placed += found
                    taken += ms
    value = f"{share(placed):.1f} %, slowest {max(taken):.0f} ms"
    yield "cut packs, slack 1-2 %", "100 %, <= 150 ms", value, all(placed) and max(taken) <= 150
    for even in (False, True):
        placed, taken = [], []
        for per in (8, 16):
            for packs in (8, 16, 32):
                found, ms = run(per, packs, 0, even)
                placed += found
                taken += ms
        value = f"{share(placed):.1f} %, p95 {quantile(taken, 0.95):.1f} ms, slowest {max(taken):.0f} ms"
        yield f"slack 0, 8 and 16 a pack, {_cut(even)}", "100 %, <= 5 ms", value, all(placed) and max(taken) <= 5


def _cut(even: bool) -> str:
    return "evenly cut" if even else "randomly cut"


def hopeless(quick: bool) -> Iterator[Row]:
    """Two free tokens that three packs cannot share: every length but one is a multiple of 3, and the cap is not."""
    for n in (30, 90, 900, 3300):
        rng = random.Random(n)
        lens = [3 * rng.randint(2, 27) for _ in range(n)]
        lens[0] += 1
        while (sum(lens) + 2) % 9 != 6:
            lens[1] += 3

        def give_up() -> bool:
            try:
                plan_window(lens, (sum(lens) + 2) // 3, 3)  # noqa: B023
            except UndecidedWindowError:
                return True
            except InfeasibleWindowError:
                pass
            return False

        undecided, ms = cpu_ms(give_up)
        value = f"{ms:.0f} ms" + ("" if undecided else " (decided)")
        yield f"hopeless window of {n} segments (beyond the goals)", "<= 1000 ms", value, ms <= 1000


def balanced(quick: bool) -> Iterator[Row]:
    rng = random.Random(4)
    ratios, at_bound = [], []
    for _ in range(60 if quick else 300):
        lens, cap, micro_steps = realistic_window(rng)
        if len(lens) < 4 * micro_steps:
            continue
        try:
            plan = plan_window(lens, cap, micro_steps, objective="balanced")
        except (InfeasibleWindowError, UndecidedWindowError):
            continue
        bound = longest_pack_bound(sorted(lens, reverse=True), cap, micro_steps)
        ratios.append(max(plan.pack_lens) / bound)
        if len(lens) >= 16 * micro_steps:
            at_bound.append(max(plan.pack_lens) == bound)
    value = f"{share(at_bound):.1f} % of {len(at_bound)}"
    yield "`balanced` at the bound, 16+ a pack", ">= 99 %", value, share(at_bound) >= 99
    mean = statistics.mean(ratios)
    yield "`balanced` over the bound, 4+ a pack", "<= 1.004", f"{mean:.5f} (worst {max(ratios):.4f})", mean <= 1.004


def large(quick: bool) -> Iterator[Row]:
    rng = random.Random(5)
    for kind in KINDS:
        lens = realistic_lengths(rng, kind, 100_000, CAP / 7)
        plan, ms = cpu_ms(lambda: plan_window(lens, CAP, None), 1 if quick else 5)  # noqa: B023
        ffd = len(first_fit_decreasing(lens, CAP, 0))
        value = f"{ms / 1e3:.2f} s, {plan.non_empty} packs (FFD {ffd}, bound {plan.lower_bound})"
        yield f"100,000 lengths, {kind}", "<= 0.3 s, <= FFD", value, ms <= 300 and plan.non_empty <= ffd


def ranks(quick: bool) -> Iterator[Row]:
    rng = random.Random(6)
    for n in (8, 64, 1024):
        # Drawn together: scaled to the same mean rank by rank they would be level already.
        pool = realistic_lengths(rng, "lognormal", 32 * n, 2050, 14000)
        yield _leveled(f"straggler, {n} ranks of 32", pool, n, 8)
    # No goal of the project has so few segments a rank; the bound of the others is held against it all the same.
    pool = realistic_lengths(random.Random(0), "fitted", 512, 0.95 * 4 * 14000 / 8, 14000)
    yield _leveled("straggler, 64 ranks of 8 in 4 packs, 95 % full (beyond the goals)", pool, 64, 4)


def _leveled(name: str, pool: list[int], n: int, micro_steps: int) -> Row:
    per = len(pool) // n
    by_rank = [pool[per * rank : per * rank + per] for rank in range(n)]
    plan, ms = cpu_ms(lambda: plan_ranks(by_rank, 14000, micro_steps), 5)
    tokens = sum(pool)
    value = (
        f"{plan.straggler:.4f} (before {plan.straggler_before:.2f}), {ms:.0f} ms, moved "
        f"{100 * plan.moved_tokens / tokens:.1f} % (least {100 * plan.least_moved_tokens / tokens:.1f} %)"
    )
    return name, "<= 1.03, <= 100 ms", value, plan.straggler <= 1.03 and ms <= 100
