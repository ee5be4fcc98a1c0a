"""A replay counts what packsched's own calls give on the same lengths, and loses no segment."""

import numpy as np
import pytest

from packsched import (
    BufferOverflowError,
    CarryBuffer,
    InfeasibleWindowError,
    OversizedSegmentError,
    plan_ranks,
    plan_window,
    select,
)
from packsched.replay import COST, replay, replays
from packsched.simulate import simulate_ranks
from packsched.steps import cut_steps

CAP, GA = 1000, 4


def lengths(n, seed=0, mean=200):
    rng = np.random.default_rng(seed)
    return np.clip(rng.lognormal(np.log(mean) - 0.32, 0.8, n), 1, CAP).astype(int).tolist()


def by_rule(rows):
    return {(row.scope, row.rule): row for row in rows}


def packed(row):
    return row.fill.segments


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("mean", [150, 230, 420])
def test_every_segment_is_packed_refused_waiting_or_not_reached(ranks, mean):
    lens = lengths(701, seed=mean, mean=mean)
    of_rank = np.random.default_rng(1).integers(ranks, size=701)
    steps = cut_steps(lens, micro_steps=GA, batch_size=4, ranks=of_rank)
    rows = replay(steps, CAP, packing_buffer=40)
    for row in rows:
        assert packed(row) + row.refused + row.left_waiting + row.not_reached == 701, row
        assert row.scope == "micro" or row.left_waiting == row.not_reached == 0
        assert (row.stopped_at is None) == (row.not_reached == 0)
    assert len(rows) == (6 if ranks == 1 else 9)
    if mean == 420:
        assert all(row.stopped_at is not None for row in rows[:3]), "no buffer was full"
        assert all(row.infeasible for row in rows[3:]), "every window fitted"


def test_scope_window_counts_what_plan_window_gives_window_by_window():
    steps = cut_steps(lengths(1600, seed=2, mean=215), micro_steps=GA, batch_size=4)
    rows = by_rule(replay(steps, CAP))
    for objective in ("dense", "balanced", "cost"):
        row, used, bounds, infeasible, longest = rows["window", objective], 0, 0, 0, []
        for step in steps:
            try:
                plan = plan_window(step.encoded_lens[0], CAP, GA, objective=objective)
            except InfeasibleWindowError:
                infeasible += 1
                continue
            used += plan.non_empty
            bounds += plan.lower_bound
            longest.append(max(plan.pack_lens) / CAP)
        assert (row.fill.non_empty_packs, row.fill.lower_bound, row.infeasible) == (used, bounds, infeasible)
        assert row.longest_packs == longest
        assert row.fill.windows == len(steps) - infeasible == len(row.fills)
        assert infeasible > 0
    assert rows["window", "dense"].fill.non_empty_packs < rows["window", "balanced"].fill.non_empty_packs


@pytest.mark.parametrize("policy", ["fifo", "binpacking", "optimal"])
def test_scope_micro_counts_what_select_chooses_step_by_step(policy):
    lens = lengths(160, seed=3, mean=240)
    row = by_rule(replay(cut_steps(lens, micro_steps=GA, batch_size=4), CAP))["micro", policy]
    waiting, waits, late, tokens, most = [], [], 0, 0, 0
    for micro_step in range(40):
        waiting += [(micro_step, length) for length in lens[4 * micro_step : 4 * micro_step + 4]]
        chosen = select([length for _, length in waiting], CAP, policy=policy)
        waits += [micro_step - waiting[at][0] for at in chosen]
        late += sum(micro_step // GA > waiting[at][0] // GA for at in chosen)
        tokens += sum(waiting[at][1] for at in chosen)
        waiting = [pair for at, pair in enumerate(waiting) if at not in chosen]
        most = max(most, len(waiting))
    assert (row.waited, row.longest_wait, row.late) == (sum(waits), max(waits), late)
    assert (row.fill.tokens, row.left_waiting, row.most_waiting) == (tokens, len(waiting), most)
    assert late > 0


def test_scope_micro_ends_where_the_carry_buffer_would_raise():
    lens = [600] * 40  # one fits into a pack and two are added for each
    row = by_rule(replay(cut_steps(lens, micro_steps=GA, batch_size=2), CAP, packing_buffer=7))["micro", "fifo"]
    buffer, added = CarryBuffer(CAP, packing_buffer=7, policy="fifo", min_fill_ratio=0), 0
    while len(buffer) < 7:
        buffer.add(None, 600)
        added += 1
        if added % 2 == 0:
            buffer.pop_pack()
    with pytest.raises(BufferOverflowError):
        buffer.add(None, 600)
    assert (row.not_reached, row.left_waiting, row.stopped_at) == (40 - added, 7, (added // 2) // GA)


def test_scope_global_counts_what_plan_ranks_gives():
    rng = np.random.default_rng(4)
    lens = [*lengths(160, seed=5, mean=160), *lengths(160, seed=6, mean=260)]
    order = rng.permutation(320)
    ranks, lens = order // 160, np.array(lens)[order].tolist()
    steps = cut_steps(lens, micro_steps=GA, batch_size=4, ranks=ranks)
    rows = by_rule(replay(steps, CAP))
    row = rows["global", "dense"]
    plans = [plan_ranks(step.encoded_lens, CAP, GA, cost=COST) for step in steps]
    assert row.moved_tokens == sum(plan.moved_tokens for plan in plans) > 0
    assert row.stragglers == pytest.approx([plan.straggler for plan in plans])
    assert row.fill.non_empty_packs == sum(one.non_empty for plan in plans for one in plan.plans)
    assert row.infeasible == 0 < rows["window", "dense"].infeasible
    alone = [
        plan.straggler_before for step, plan in zip(steps, plans, strict=True) if all(map(fits, step.encoded_lens))
    ]
    assert rows["window", "dense"].stragglers == pytest.approx(alone)


def test_a_replay_advances_as_often_as_announced_also_when_it_stops():
    steps, calls = cut_steps([600] * 40, micro_steps=GA, batch_size=2, ranks=[0, 1] * 20), []
    replay(steps, CAP, packing_buffer=7, advance=lambda: calls.append(1))
    assert len(calls) == replays(steps) == 9 * len(steps)


def test_a_segment_longer_than_a_pack_is_refused():
    with pytest.raises(OversizedSegmentError, match="encoded_len 1001"):
        replay(cut_steps([5, 1001], micro_steps=2, batch_size=1), CAP)


def test_simulated_ranks_are_what_plan_ranks_gives_on_the_drawn_windows():
    lens, calls = lengths(500, seed=7), []
    done = simulate_ranks(lens, CAP, GA, batch_size=4, ranks=16, steps=3, seed=8, advance=lambda: calls.append(1))
    rng = np.random.default_rng(8)
    drawn = [np.array(lens)[rng.integers(500, size=(16, 16))].tolist() for _ in range(3)]
    plans = [plan_ranks(step, CAP, GA, cost=COST) for step in drawn]
    assert done.stragglers == [plan.straggler for plan in plans]
    assert done.stragglers_before == [plan.straggler_before for plan in plans]
    assert done.moved == [plan.moved_tokens / sum(map(sum, step)) for plan, step in zip(plans, drawn, strict=True)]
    misfits = [sum(not fits(own) for own in step) for step in drawn]
    assert done.misfits == misfits
    assert done.rescued == sum(number > 0 for number in misfits) > 0
    assert (len(calls), done.infeasible, done.undecided) == (3, 0, 0)


def fits(lens):
    try:
        plan_window(lens, CAP, GA)
    except InfeasibleWindowError:
        return False
    return True


def test_simulated_steps_that_not_even_all_ranks_can_place_are_counted():
    done = simulate_ranks([600], CAP, GA, batch_size=2, ranks=8, steps=2)
    assert (done.infeasible, done.misfits, done.rescued, done.stragglers) == (2, [8, 8], 0, [])


def test_a_simulation_without_lengths_is_refused():
    with pytest.raises(ValueError, match="no lengths to draw from"):
        simulate_ranks([], CAP, GA, batch_size=2, ranks=8)
