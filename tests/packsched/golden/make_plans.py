"""Writes `plans.json`: windows and ranks of many shapes with the decisions made for them.

Run it only when a decision is meant to change: `python tests/packsched/golden/make_plans.py`. It needs the standard
library and packsched alone, and draws its lengths from an own generator, so that every Python writes the same file.
"""

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from packsched import InfeasibleWindowError, UndecidedWindowError, plan_window, select
from packsched.planner.random_integers import Integers
from packsched.ranks import plan_ranks


def lengths(draw: Integers, kind: int, n: int, mean: int, cap: int) -> list[int]:
    if kind == 0:  # even
        raw = [mean // 2 + draw.below(mean + 1) for _ in range(n)]
    elif kind == 1:  # a long tail
        raw = [mean * 1000 // (400 + draw.below(3200)) for _ in range(n)]
    elif kind == 2:  # bimodal
        raw = [
            3 * mean // 2 + draw.below(mean) if draw.below(3) == 0 else mean // 4 + draw.below(mean // 4 + 1)
            for _ in range(n)
        ]
    else:  # few different lengths
        raw = [mean // 2 + 7 * draw.below(5) for _ in range(n)]
    return [max(1, min(cap, length)) for length in raw]


def cut(draw: Integers, packs: int, per_pack: int, cap: int) -> list[int]:
    """Exactly full packs, cut at random."""
    pieces: list[int] = []
    for _ in range(packs):
        marks = sorted([0, cap, *(1 + at for at in draw.sample(cap - 1, per_pack - 1))])
        pieces += [end - start for start, end in pairwise(marks)]
    return pieces


def decision(lens: list[int], cap: int, steps: int | None, objective: str) -> object:
    try:
        return plan_window(lens, cap, steps, objective=objective).packs
    except (InfeasibleWindowError, UndecidedWindowError) as error:
        return str(error)


def cases() -> list[dict[str, object]]:
    draw = Integers(7)
    windows: list[tuple[list[int], int, int | None]] = []
    for case in range(120):
        cap = (64, 1000, 4096, 16384)[case % 4]
        steps = 2 + draw.below(9)
        n = steps * (1 + draw.below(8)) + draw.below(3)
        load = 50 + draw.below(50)
        windows.append((lengths(draw, case // 4 % 4, n, max(4, steps * cap * load // 100 // n), cap), cap, steps))
    windows += [(cut(draw, packs, per, 16384), 16384, packs) for packs in (4, 8, 12) for per in (3, 4, 6, 12)]
    windows += [(lengths(draw, kind, 150, 500, 4096), 4096, None) for kind in range(4)]
    found: list[dict[str, object]] = []
    for lens, cap, steps in windows:
        case_: dict[str, object] = {"encoded_lens": lens, "packing_length": cap, "micro_steps": steps}
        case_["dense"] = decision(lens, cap, steps, "dense")
        if steps is not None:
            case_["balanced"] = decision(lens, cap, steps, "balanced")
        case_["optimal"] = select(lens, cap, policy="optimal")
        found.append(case_)
    for ranks in (2, 5, 16):
        by_rank = [lengths(draw, rank % 3, 12, 1500, 8192) for rank in range(ranks)]
        plan = plan_ranks(by_rank, 8192, 4)
        found.append(
            {"encoded_lens_by_rank": by_rank, "moves": plan.moves, "plans": [rank.packs for rank in plan.plans]}
        )
    near_half = [lengths(draw, 0, 8, 3700, 8192) for _ in range(24)]
    near_half = [[3600 + length % 900 for length in rank] for rank in near_half]
    few = [lengths(draw, 1, 12, 1800, 8192) for _ in range(8)]
    groups = [[at // 3 for at in range(12)] for _ in few]
    options: list[tuple[list[list[int]], int | None, dict[str, Any]]] = [
        (near_half, 5, {}),
        (few, 4, {"objective": "cost"}),
        (few, None, {"groups": groups, "multiple_of": 3}),
        (few, 4, {"cost": [[length + 5000 * (at % 4 == 0) for at, length in enumerate(rank)] for rank in few]}),
    ]
    for by_rank, steps, further in options:
        plan = plan_ranks(by_rank, 8192, steps, **further)
        found.append(
            {
                **{"encoded_lens_by_rank": by_rank, "micro_steps": steps, **further},
                **{"moves": plan.moves, "plans": [rank.packs for rank in plan.plans]},
            }
        )
    return found


def text() -> str:
    return "[\n" + ",\n".join(json.dumps(case) for case in cases()) + "\n]\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        sys.stdout.write(text())
    else:
        Path(__file__).with_name("plans.json").write_text(text())
