"""Simulates scope `global` on many ranks whose segments are drawn from a trace."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from packsched.arguments import checked_count, checked_lengths
from packsched.errors import InfeasibleWindowError, PackingError, UndecidedWindowError
from packsched.ranks import plan_ranks
from packsched.replay import COST, Advance
from packsched.window import Objective, plan_window


@dataclass(kw_only=True)
class SimulatedRanks:
    """Holds what scope `global` would do on many ranks whose segments are drawn from a trace.

    Attributes:
        ranks: Number of ranks.
        segments: Segments of each rank in a step.
        misfits: For each step the ranks whose own segments do not fit into their packs; scope `window` would stop.
        rescued: Steps with such ranks that scope `global` planned.
        infeasible: Steps in which the segments of all ranks together provably do not fit.
        undecided: Steps for which scope `global` found neither a plan nor a proof.
        stragglers_before: For each planned step the highest over the mean cost of the ranks without moves.
        stragglers: The same after the moves.
        moved: For each planned step the tokens that moved, as a share of all.
        least_moved: A lower bound of `moved` for the straggler that was reached.
        seconds: For each planned step the time that `plan_ranks` took.
    """

    ranks: int
    segments: int
    misfits: list[int] = field(default_factory=list)
    rescued: int = 0
    infeasible: int = 0
    undecided: int = 0
    stragglers_before: list[float] = field(default_factory=list)
    stragglers: list[float] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    least_moved: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def simulate_ranks(
    encoded_lens: Iterable[int],
    packing_length: int,
    micro_steps: int,
    *,
    batch_size: int,
    ranks: int,
    steps: int = 10,
    objective: Objective = "dense",
    seed: int = 0,
    advance: Advance = lambda: None,
) -> SimulatedRanks:
    """Draws the windows of many ranks from a trace, with replacement, and plans them in scope `global`.

    Segments are drawn independently. Where the segments of a rank are similar to each other, its windows vary more than
    in this simulation.

    Args:
        encoded_lens: Lengths in tokens to draw from.
        packing_length: Hard cap of a pack, in tokens.
        micro_steps: Packs of each rank.
        batch_size: Segments of a micro-batch; each rank gets `batch_size * micro_steps` in a step.
        ranks: Number of ranks.
        steps: Number of optimizer steps.
        objective: `dense` or `balanced`.
        seed: Seed of the draws.
        advance: Called after each step, for a progress bar.

    Raises:
        OversizedSegmentError: A segment is longer than `packing_length`.
        PackingError: There are no lengths, or a number is out of range.
    """
    lens = np.array(checked_lengths(encoded_lens, checked_count("packing_length", packing_length)), dtype=np.int64)
    if not len(lens):
        raise PackingError("there are no lengths to draw from; give those of at least one segment.")
    size = checked_count("batch_size", batch_size) * checked_count("micro_steps", micro_steps)
    done = SimulatedRanks(ranks=checked_count("ranks", ranks), segments=size)
    rng = np.random.default_rng(seed)
    for _ in range(checked_count("steps", steps)):
        drawn = lens[rng.integers(len(lens), size=(ranks, size))].tolist()
        misfits = sum(not _fits(own, packing_length, micro_steps, objective) for own in drawn)
        done.misfits.append(misfits)
        start = time.perf_counter()
        try:
            plan = plan_ranks(drawn, packing_length, micro_steps, cost=COST, objective=objective)
        except (InfeasibleWindowError, UndecidedWindowError) as error:
            done.infeasible += isinstance(error, InfeasibleWindowError)
            done.undecided += isinstance(error, UndecidedWindowError)
        else:
            done.seconds.append(time.perf_counter() - start)
            done.rescued += misfits > 0
            tokens = sum(map(sum, drawn))
            done.stragglers_before.append(plan.straggler_before)
            done.stragglers.append(plan.straggler)
            done.moved.append(plan.moved_tokens / tokens)
            done.least_moved.append(plan.least_moved_tokens / tokens)
        advance()
    return done


def _fits(encoded_lens: Sequence[int], packing_length: int, micro_steps: int, objective: Objective) -> bool:
    try:
        plan_window(encoded_lens, packing_length, micro_steps, objective=objective)
    except (InfeasibleWindowError, UndecidedWindowError):
        return False
    return True
