"""Replays the lengths of a run under every scope, policy and objective.

Nothing is trained: each replay makes the calls that a trainer makes, with the same micro-batches in the same order, and
counts. Every segment of the trace ends as packed, refused, waiting or not reached, so their counts add up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import get_args

from packsched.arguments import checked_count, checked_lengths
from packsched.buffers import CarryBuffer
from packsched.costs import SegmentCost
from packsched.errors import BufferOverflowError, InfeasibleWindowError, UndecidedWindowError
from packsched.ranks import plan_ranks
from packsched.selection import Policy
from packsched.stats import FillStats
from packsched.steps import Step
from packsched.window import Objective, WindowPlan, plan_window

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
POLICIES: tuple[Policy, ...] = get_args(Policy)
COST = SegmentCost.of_model(width=2048, depth=28, vocabulary=151_936)
"""Costs of segments in a model of about two billion parameters, for comparing ranks."""

Advance = Callable[[], object]


@dataclass(kw_only=True)
class Replayed:
    """Holds what one scope and rule did with a trace.

    A step that cannot be planned in scope `window` or `global` is left out of `fill`, and its segments are refused.

    Attributes:
        scope: `micro`, `window` or `global`.
        rule: The policy of scope `micro`, the objective of the others.
        fill: How full the packs were, summed up over all windows of all ranks.
        packs: Packs of these windows, empty ones included.
        infeasible: Steps in which the segments of a rank (in scope `global`, of all ranks) provably do not fit.
        undecided: Steps for which neither a plan nor a proof was found.
        refused: Segments of the infeasible and undecided steps.
        left_waiting: Segments that wait in the carry buffers after the last step.
        not_reached: Segments that never entered, because a carry buffer was full.
        stopped_at: The step, counted from 0, in which a carry buffer was full; None if none was.
        waited: Micro-steps that the packed segments waited in a carry buffer, summed up.
        longest_wait: The most micro-steps that a packed segment waited.
        late: Segments packed in a later optimizer step than the one that they were made for.
        most_waiting: The most segments that a carry buffer held after a pack was popped.
        planned: The steps, counted from 0, that were planned. The next three lists have an entry for each.
        fills: For each planned step the fill of its non-empty packs.
        longest_packs: For each planned step its longest pack as a share of `packing_length`.
        stragglers: For each planned step the highest over the mean cost of the ranks.
        moved_tokens: Tokens that scope `global` moved between ranks.
        seconds: For each step the time that planning took.
    """

    scope: str
    rule: str
    fill: FillStats = field(default_factory=FillStats)
    packs: int = 0
    infeasible: int = 0
    undecided: int = 0
    refused: int = 0
    left_waiting: int = 0
    not_reached: int = 0
    stopped_at: int | None = None
    waited: int = 0
    longest_wait: int = 0
    late: int = 0
    most_waiting: int = 0
    planned: list[int] = field(default_factory=list)
    fills: list[float] = field(default_factory=list)
    longest_packs: list[float] = field(default_factory=list)
    stragglers: list[float] = field(default_factory=list)
    moved_tokens: int = 0
    seconds: list[float] = field(default_factory=list)

    def _add(
        self, number: int, ranks: Sequence[FillStats], longest_pack: int, packing_length: int, costs: Sequence[int]
    ) -> None:
        step = FillStats()
        for packed in ranks:
            step = step.merge(packed)
        self.fill = self.fill.merge(step)
        self.packs += step.capacity // packing_length
        self.planned.append(number)
        self.fills.append(step.metrics()["fill_non_empty"])
        self.longest_packs.append(longest_pack / packing_length)
        self.stragglers.append(_straggler(costs))


def replay(
    steps: Sequence[Step], packing_length: int, *, packing_buffer: int = 512, advance: Advance = lambda: None
) -> list[Replayed]:
    """Replays the steps under every policy of scope `micro` and every objective of the scopes `window` and `global`.

    Args:
        steps: What `cut_steps` returned.
        packing_length: Hard cap of a pack, in tokens.
        packing_buffer: The most segments that a rank's carry buffer may hold. A replay of scope `micro` ends where a
            run would: when a segment finds the buffer full.
        advance: Called after each step of each replay, for a progress bar: `replays(steps)` times in all.

    Returns:
        One result for each scope and rule; those of scope `global` only if there are several ranks.

    Raises:
        OversizedSegmentError: A segment is longer than `packing_length`.
    """
    cap = checked_count("packing_length", packing_length)
    for step in steps:
        checked_lengths(list(chain.from_iterable(step.encoded_lens)), cap)
    done = [_replay_micro(steps, cap, policy, packing_buffer, advance) for policy in POLICIES]
    done += [_replay_windows(steps, cap, "window", objective, advance) for objective in OBJECTIVES]
    if _ranks(steps) > 1:
        done += [_replay_windows(steps, cap, "global", objective, advance) for objective in OBJECTIVES]
    return done


def replays(steps: Sequence[Step]) -> int:
    """Returns how many steps `replay` takes in all. O(1)."""
    return len(steps) * (len(POLICIES) + len(OBJECTIVES) * (2 if _ranks(steps) > 1 else 1))


def _ranks(steps: Sequence[Step]) -> int:
    return len(steps[0].micro_batches) if steps else 0


def _replay_micro(steps: Sequence[Step], cap: int, policy: Policy, packing_buffer: int, advance: Advance) -> Replayed:
    done = Replayed(scope="micro", rule=policy)
    buffers: list[CarryBuffer[tuple[int, int, int]]] = [
        CarryBuffer(cap, packing_buffer=packing_buffer, policy=policy, min_fill_ratio=0) for _ in range(_ranks(steps))
    ]
    clock = 0
    for number, step in enumerate(steps):
        if done.stopped_at is not None:
            done.not_reached += sum(map(len, step.encoded_lens))
            advance()
            continue
        packed, longest, costs = [], 0, []
        start = time.perf_counter()
        for buffer, batches in zip(buffers, step.micro_batches, strict=True):
            pack_lens, segments, cost = [], 0, 0
            entered = 0
            for micro_step in range(step.micro_steps):
                try:
                    for length in batches[micro_step] if micro_step < len(batches) else ():
                        buffer.add((clock + micro_step, number, length), length)
                        entered += 1
                except BufferOverflowError:
                    done.stopped_at = number
                    break
                pack = buffer.pop_pack() if len(buffer) else ()
                pack_lens.append(sum(length for _, _, length in pack))
                segments += len(pack)
                for made, made_for, length in pack:
                    wait = clock + micro_step - made
                    done.waited += wait
                    done.longest_wait = max(done.longest_wait, wait)
                    done.late += made_for < number
                    cost += COST(length)
                done.most_waiting = max(done.most_waiting, len(buffer))
            done.not_reached += sum(map(len, batches)) - entered
            packed.append(FillStats.from_packs(pack_lens, cap, segments=segments))
            longest = max(longest, *pack_lens) if pack_lens else longest
            costs.append(cost)
        done.seconds.append(time.perf_counter() - start)
        done._add(number, packed, longest, cap, costs)
        clock += step.micro_steps
        advance()
    done.left_waiting = sum(map(len, buffers))
    return done


def _replay_windows(steps: Sequence[Step], cap: int, scope: str, objective: Objective, advance: Advance) -> Replayed:
    done = Replayed(scope=scope, rule=objective)
    for number, step in enumerate(steps):
        lens = step.encoded_lens
        held = lens
        start = time.perf_counter()
        try:
            if scope == "global":
                together = plan_ranks(lens, cap, step.micro_steps, cost=COST, objective=objective)
                plans: Sequence[WindowPlan] = together.plans
                held = [[lens[rank][at] for rank, at in of_rank] for of_rank in together.segments]
                done.moved_tokens += together.moved_tokens
            else:
                plans = [plan_window(own, cap, step.micro_steps, objective=objective) for own in lens]
        except (InfeasibleWindowError, UndecidedWindowError) as error:
            done.infeasible += isinstance(error, InfeasibleWindowError)
            done.undecided += isinstance(error, UndecidedWindowError)
            done.refused += sum(map(len, lens))
        else:
            packed = [
                FillStats.from_packs(plan.pack_lens, cap, segments=len(own), lower_bound=plan.lower_bound)
                for plan, own in zip(plans, held, strict=True)
            ]
            longest = max(max(plan.pack_lens) for plan in plans)
            done._add(number, packed, longest, cap, [sum(map(COST, own)) for own in held])
        done.seconds.append(time.perf_counter() - start)
        advance()
    return done


def _straggler(costs: Sequence[int]) -> float:
    return max(costs) * len(costs) / sum(costs) if any(costs) else 1.0
