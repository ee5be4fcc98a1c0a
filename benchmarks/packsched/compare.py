"""Compares packsched with the alternatives that a user has, in one run on one machine."""

import random
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.packsched import peers
from benchmarks.packsched.measure import cpu_ms, share, table
from benchmarks.packsched.workloads import CAP, KINDS, realistic_lengths, realistic_window, tight_window
from packsched import InfeasibleWindowError, UndecidedWindowError, plan_window, select
from packsched.planner.levelling import longest_pack_bound

Curves = dict[str, dict[int, float]]


def ours(lengths: list[int], cap: int, packs: int) -> list[list[int]] | None:
    try:
        plan = plan_window(lengths, cap, packs)
    except (InfeasibleWindowError, UndecidedWindowError):
        return None
    return [[lengths[index] for index in pack] for pack in plan.packs if pack]


def window_peers() -> dict[str, Callable[..., Any]]:
    found = {name: peer for name, peer in peers.WINDOW_PEERS.items() if peers.is_available(peer)}
    return {"packsched plan_window": ours, **found}


def ordinary_windows(quick: bool) -> str:
    """Windows at a load of 97 %: how many are placed, with how many packs over the fewest, how fast."""
    rows = []
    for n, micro_steps in ((32, 4), (128, 16), (512, 64)):
        rng = random.Random(n)
        cases = [
            realistic_lengths(rng, kind, n, 0.97 * micro_steps * CAP / n)
            for kind in KINDS
            for _ in range(2 if quick else 5)
        ]
        for name, peer in window_peers().items():
            placed, extra, taken = [], [], []
            for lengths in cases:
                packs, ms = cpu_ms(lambda: peer(lengths, CAP, micro_steps), 5)  # noqa: B023
                fewest = -(-sum(lengths) // CAP)
                placed.append(packs is not None and len(packs) <= micro_steps)
                extra.append(len(packs or range(micro_steps + 1)) - fewest)
                taken.append(ms)
            base = taken if name.startswith("packsched") else base  # noqa: F821
            ratio = statistics.median(taken) / statistics.median(base)
            rows.append(
                [f"{n} in {micro_steps}", name, f"{share(placed):.0f} %", f"{statistics.mean(extra):.2f}",
                 f"{statistics.median(taken):.2f}", f"{ratio:.1f}"]
            )  # fmt: skip
    header = ["segments, packs", "planner", "placed", "packs over volume bound", "CPU ms", "time ratio"]
    return table(header, rows)


def tight_windows(quick: bool) -> str:
    """Windows that fit by construction: the share that each planner places."""
    families = [
        (f"{packs} packs of {per}, slack {slack:.1%}, {'even' if even else 'random'}", packs, per, slack, even)
        for slack in (0.01, 0.0)
        for per in (3, 4, 8)
        for packs in (16,)
        for even in (False, True)
    ]
    names = list(window_peers())
    rows = []
    for title, packs, per, slack, even in families:
        rng = random.Random(packs * per)
        cases = [tight_window(rng, packs, per, slack, even=even) for _ in range(5 if quick else 20)]
        row = [title]
        for name in names:
            results = [window_peers()[name](*case) for case in cases]
            row.append(f"{share([found is not None and len(found) <= packs for found in results]):.0f} %")
        rows.append(row)
    return table(["window", *names], rows)


def level_windows(quick: bool) -> str:
    """Longest pack over its proven lower bound, for the peers that level (they know no cap)."""
    rows = []
    for n, micro_steps in ((32, 8), (64, 8), (256, 16), (512, 32)):
        rng = random.Random(n)
        cases = [
            realistic_lengths(rng, kind, n, 0.9 * micro_steps * CAP / n)
            for kind in KINDS
            for _ in range(2 if quick else 5)
        ]
        planners: dict[str, Callable[..., Any]] = {
            "packsched balanced": lambda lengths, cap, packs: [
                [lengths[index] for index in pack]
                for pack in plan_window(lengths, cap, packs, objective="balanced").packs
            ],
            **peers.LEVEL_PEERS,
        }
        for name, peer in planners.items():
            over, taken = [], []
            for lengths in cases:
                packs, ms = cpu_ms(lambda: peer(lengths, CAP, micro_steps), 5)  # noqa: B023
                bound = longest_pack_bound(sorted(lengths, reverse=True), CAP, micro_steps)
                over.append(max(map(sum, packs)) / bound)
                taken.append(ms)
            rows.append(
                [f"{n} in {micro_steps}", name, f"{statistics.mean(over):.5f}", f"{statistics.median(taken):.2f}"]
            )
    return table(["segments, packs", "planner", "longest / bound", "CPU ms"], rows)


def referee(quick: bool) -> str:
    """Compares the verdicts of CP-SAT, 10 s for each window, with ours on small windows that barely fit or do not."""
    if not peers.is_available(lambda lengths, cap, packs: [[peers.cp_sat(lengths, cap, packs)]]):  # type: ignore[list-item]
        return "ortools is not installed."
    rng = random.Random(12)
    agree = wrong = ours_only = referee_only = neither = 0
    our_ms, its_ms = [], []
    for case in range(20 if quick else 120):
        if case % 3:
            micro_steps = rng.randint(4, 14)
            n = int(micro_steps * rng.uniform(1.8, 4))
            lengths = realistic_lengths(rng, rng.choice(KINDS), n, rng.uniform(0.88, 0.995) * micro_steps * CAP / n)
        else:
            lengths, _, micro_steps = realistic_window(rng)
            if len(lengths) > 120:
                continue

        def verdict() -> bool | None:
            try:
                return bool(plan_window(lengths, CAP, micro_steps))  # noqa: B023
            except InfeasibleWindowError:
                return False
            except UndecidedWindowError:
                return None

        mine, ms = cpu_ms(verdict)
        its, its_taken = cpu_ms(lambda: peers.cp_sat(lengths, CAP, micro_steps))  # noqa: B023
        our_ms.append(ms)
        its_ms.append(its_taken)
        agree += mine is not None and mine == its
        wrong += mine is not None and its is not None and mine != its
        ours_only += mine is not None and its is None
        referee_only += mine is None and its is not None
        neither += mine is None and its is None
    return table(
        ["windows", "same verdict", "different verdict", "only packsched decides", "only CP-SAT decides", "neither",
         "median CPU ms: packsched, CP-SAT"],
        [[str(len(our_ms)), str(agree), str(wrong), str(ours_only), str(referee_only), str(neither),
          f"{statistics.median(our_ms):.2f}, {statistics.median(its_ms):.0f}"]],
    )  # fmt: skip


def selection(quick: bool) -> tuple[str, Curves, Curves]:
    """Fill of the next pack and time to choose it, by policy and buffer size; and the curves of both."""
    rows, fills, times = [], {}, {}
    for n in (8, 16, 32, 64, 128, 256, 512, 1024):
        row = [str(n)]
        for policy in ("fifo", "binpacking", "optimal"):
            rng = random.Random(n)
            fill, taken = [], []
            for case in range(6 if quick else 20):
                lengths = realistic_lengths(rng, KINDS[case % 4], n, CAP / 7)
                chosen, ms = cpu_ms(lambda: select(lengths, CAP, policy=policy), 5)  # noqa: B023
                fill.append(sum(lengths[index] for index in chosen) / CAP)
                taken.append(ms)
            fills.setdefault(policy, {})[n] = statistics.mean(fill)
            times.setdefault(policy, {})[n] = statistics.median(taken)
            row.append(f"{100 * statistics.mean(fill):.2f} %, {statistics.median(taken):.3f} ms")
        rows.append(row)
    return table(["segments", "fifo", "binpacking (requirement)", "optimal"], rows), fills, times


def growth(quick: bool) -> tuple[str, Curves, Curves]:
    """Time of `plan_window` against segments and of both calls against packing_length."""
    by_segments: Curves = {"plan_window": {}, "FFD (textbook)": {}}
    for n in (8, 32, 128, 512, 2048, 8192, 32768, 100_000):
        rng = random.Random(n)
        lengths = realistic_lengths(rng, "fitted", n, CAP / 7)
        by_segments["plan_window"][n] = cpu_ms(lambda: plan_window(lengths, CAP, None), 5)[1]  # noqa: B023
        by_segments["FFD (textbook)"][n] = cpu_ms(lambda: peers.first_fit_decreasing(lengths, CAP, 0), 5)[1]  # noqa: B023
    by_cap: Curves = {"select optimal, 256 segments": {}, "plan_window, 256 segments, 97 % full": {}}
    for cap in (1024, 4096, 16384, 65536, 262144):
        chosen, planned = [], []
        for case in range(8):
            rng = random.Random(case)
            lengths = realistic_lengths(rng, KINDS[case % 4], 256, cap / 8.25, cap)
            chosen.append(cpu_ms(lambda: select(lengths, cap, policy="optimal"), 5)[1])  # noqa: B023
            planned.append(cpu_ms(lambda: ours(lengths, cap, 32), 5)[1])  # noqa: B023
        by_cap["select optimal, 256 segments"][cap] = statistics.median(chosen)
        by_cap["plan_window, 256 segments, 97 % full"][cap] = statistics.median(planned)
    first = table(
        ["segments", *by_segments],
        [[f"{n:,}", *(f"{by_segments[name][n]:.2f} ms" for name in by_segments)] for n in by_segments["plan_window"]],
    )
    second = table(
        ["packing_length", *by_cap],
        [
            [f"{cap:,}", *(f"{curve[cap]:.2f} ms" for curve in by_cap.values())]
            for cap in by_cap["select optimal, 256 segments"]
        ],
    )
    return first + "\n\n" + second, by_segments, by_cap
