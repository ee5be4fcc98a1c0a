"""Ranks give and take few segments until all of them fit and cost the same."""

import random
import subprocess
import sys
from dataclasses import astuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packsched import InfeasibleWindowError, OversizedSegmentError, PackingError, UndecidedWindowError, plan_window
from packsched.balancing.exchange import level_ranks
from packsched.balancing.pooling import fit_every_rank
from packsched.costs import SegmentCost
from packsched.ranks import plan_ranks
from packsched.window import plan_of_packs


def log_normal_ranks(seed: int, ranks: int, segments: int = 32) -> list[list[int]]:
    rng = random.Random(seed)
    return [[min(14000, int(rng.lognormvariate(0, 0.6) * 2050) + 8) for _ in range(segments)] for _ in range(ranks)]


def assert_is_a_plan(plan, lens, packing_length, micro_steps):
    everything = [(rank, at) for rank, rank_lens in enumerate(lens) for at in range(len(rank_lens))]
    assert sorted(one for here in plan.segments for one in here) == everything
    moved = {(from_rank, segment): rank for segment, from_rank, rank in plan.moves}
    assert len(moved) == len(plan.moves)
    for rank, (here, rank_plan) in enumerate(zip(plan.segments, plan.plans, strict=True)):
        kept = [(rank, at) for at in range(len(lens[rank])) if (rank, at) not in moved]
        received = [(from_rank, segment) for segment, from_rank, to_rank in plan.moves if to_rank == rank]
        assert list(here) == kept + received
        assert len(rank_plan.packs) == micro_steps
        assert sorted(index for pack in rank_plan.packs for index in pack) == list(range(len(here)))
        for pack, tokens in zip(rank_plan.packs, rank_plan.pack_lens, strict=True):
            assert sum(lens[here[index][0]][here[index][1]] for index in pack) == tokens <= packing_length
    assert plan.moved_tokens == sum(lens[from_rank][segment] for segment, from_rank, _ in plan.moves)
    assert plan.least_moved_tokens <= plan.moved_tokens


@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_thirty_two_rollouts_a_rank_are_leveled(ranks):
    for seed in range(3):
        lens = log_normal_ranks(seed, ranks)
        plan = plan_ranks(lens, 14000, 8)
        assert_is_a_plan(plan, lens, 14000, 8)
        assert plan.straggler <= 1.03 < plan.straggler_before
        assert plan.moved_tokens <= 1.5 * plan.least_moved_tokens


def test_level_ranks_move_nothing():
    plan = plan_ranks([[5, 4], [4, 5], [5, 4]], 10, 1)
    assert plan.moves == ()
    assert plan.straggler == plan.straggler_before == 1.0


def test_a_rank_that_does_not_fit_alone_gives_to_one_that_does():
    lens = [[6, 6, 6], [1, 1]]
    plan = plan_ranks(lens, 10, 2, cost=lambda length: 1)
    assert_is_a_plan(plan, lens, 10, 2)
    assert [move[1:] for move in plan.moves] == [(0, 1)]


def test_the_cap_is_never_traded_for_cost():
    """Equal costs and few tokens, but three long segments do not fit two packs: one must leave."""
    lens = [[6, 6, 6], [3, 3, 3, 3, 3, 3], [9, 9]]
    plan = plan_ranks(lens, 10, 2, cost=lambda length: length)
    assert_is_a_plan(plan, lens, 10, 2)


def test_ranks_that_fit_only_as_one_window_are_planned_as_one():
    lens = [[7, 7, 7, 7], [3, 3, 3, 3]]
    plan = plan_ranks(lens, 10, 2, cost=lambda length: 1)
    assert_is_a_plan(plan, lens, 10, 2)
    assert all(tokens == 10 for rank in plan.plans for tokens in rank.pack_lens)


def few_segments_a_rank(seed: int, ranks: int) -> list[list[int]]:
    """Eight segments of about half a pack for four packs, 95 % full: half of the ranks cannot be placed alone."""
    rng = random.Random(seed)
    raw = [rng.lognormvariate(0, 0.35) for _ in range(8 * ranks)]
    scale = 0.95 * 4 * 14000 * ranks / sum(raw)
    lens = [min(14000, round(one * scale)) for one in raw]
    return [lens[8 * rank : 8 * rank + 8] for rank in range(ranks)]


def test_ranks_that_cannot_be_placed_alone_disturb_few_others():
    for seed in range(3):
        lens = few_segments_a_rank(seed, 64)
        unplaceable = 0
        for rank in lens:
            try:
                plan_window(rank, 14000, 4)
            except InfeasibleWindowError:
                unplaceable += 1
        plan = plan_ranks(lens, 14000, 4)
        assert_is_a_plan(plan, lens, 14000, 4)
        assert unplaceable >= 30
        assert plan.moved_tokens <= sum(map(sum, lens)) / 3  # planning all ranks as one moves almost half
        assert plan.straggler <= 1.1 < plan.straggler_before
        assert plan == plan_ranks(lens, 14000, 4)


def test_one_rank_that_cannot_be_placed_alone_takes_one_partner():
    lens = [[7, 7, 7, 7], *[[5, 5, 4, 3]] * 3, [3, 3, 3, 3]]
    plan = plan_ranks(lens, 10, 2, cost=lambda length: 1)
    assert_is_a_plan(plan, lens, 10, 2)
    assert {rank for move in plan.moves for rank in move[1:]} == {0, 4}


def test_the_packs_of_a_pool_are_the_plan_where_no_rank_finds_one():
    lens = [
        [439, 170, 126, 226, 376, 239, 783, 757, 598, 356, 267, 18, 332, 571, 761, 484, 300, 104],
        [212, 604, 173, 429, 436, 117, 91, 257, 11, 561, 629, 277, 117, 145, 91, 412, 343, 188],
    ]
    for objective in ("dense", "balanced"):
        plan = plan_ranks(lens, 1000, 6, effort=0.001, objective=objective)
        assert_is_a_plan(plan, lens, 1000, 6)
        assert all(rank_plan.lower_bound == rank_plan.non_empty == 6 for rank_plan in plan.plans)


def test_a_pool_is_adopted_where_the_ranks_alone_are_never_planned():
    lens = [[7, 7, 7, 7], [3, 3, 3, 3], [5, 5, 5, 5]]
    held = [[(rank, at) for at in range(4)] for rank in range(3)]

    def pool(lengths, ranks):
        return plan_window(lengths, 10, 2 * ranks).packs if ranks == 3 else None

    plans = fit_every_rank(
        held,
        lens,
        lens,
        2,
        [None] * 3,
        lambda lengths, trial: None,
        pool,
        lambda lengths, packs: plan_of_packs(lengths, packs, 10, 2, "dense"),
    )
    assert [plan.pack_lens for plan in plans] == [(10, 10)] * 3
    assert all(plan.optimal for plan in plans)
    for here, plan in zip(held, plans, strict=True):
        for pack, tokens in zip(plan.packs, plan.pack_lens, strict=True):
            assert sum(lens[here[index][0]][here[index][1]] for index in pack) == tokens


def test_a_segment_given_away_and_got_back_is_in_its_old_place():
    """Rank 0 gives two segments and gets the first of them back; in any other order a pack would hold 114 tokens."""
    lens = [[60, 54, 1, 48, 31], [10]]
    plan = plan_ranks(lens, 100, 2)
    assert_is_a_plan(plan, lens, 100, 2)
    assert plan.segments[0] == ((0, 1), (0, 2), (0, 3))


def test_packs_of_the_documented_order_stay_under_the_cap():
    """As a caller does it: each rank's own segments in order, then what `moves` brings it, in order."""
    rng = random.Random(1)
    placed = 0
    for _ in range(2000):
        lens = [[rng.randint(1, 100) for _ in range(5)], [rng.randint(1, 100)]]
        try:
            plan = plan_ranks(lens, 100, 2)
        except (InfeasibleWindowError, UndecidedWindowError):
            continue
        placed += 1
        gone = {(from_rank, segment) for segment, from_rank, _ in plan.moves}
        for rank, rank_plan in enumerate(plan.plans):
            here = [length for at, length in enumerate(lens[rank]) if (rank, at) not in gone]
            here += [lens[from_rank][segment] for segment, from_rank, to_rank in plan.moves if to_rank == rank]
            for pack, tokens in zip(rank_plan.packs, rank_plan.pack_lens, strict=True):
                assert sum(here[index] for index in pack) == tokens <= 100
    assert placed > 1000


def test_more_tokens_than_all_packs_hold_is_infeasible():
    with pytest.raises(InfeasibleWindowError, match="a larger packing_length") as caught:
        plan_ranks([[10, 10], [10]], 10, 1)
    assert (caught.value.bound, caught.value.micro_steps) == (3, 2)


def test_empty_ranks_and_an_empty_window():
    plan = plan_ranks([[], [4, 4, 4, 4], []], 8, 2)
    assert_is_a_plan(plan, [[], [4, 4, 4, 4], []], 8, 2)
    empty = plan_ranks([[], []], 8, 2)
    assert empty.moves == ()
    assert empty.straggler == 1.0


@pytest.mark.parametrize(
    ("lens", "cap", "steps", "options", "error", "text"),
    [
        ([], 10, 1, {}, PackingError, "no ranks"),
        ([[1], [1, 11]], 10, 2, {}, OversizedSegmentError, "rank 1: segment 1"),
        ([[1], [0]], 10, 2, {}, PackingError, "rank 1: segment 0"),
        ([[1]], 10, 0, {}, PackingError, "micro_steps"),
        ([[1]], 10, 1, {"cost": lambda length: 0.5}, PackingError, r"cost\(1\) is 0.5"),
        ([[1]], 10, 1, {"objective": "level"}, PackingError, "objective"),
        (
            [[4], [5, 6]],
            10,
            2,
            {"cost": lambda length: 9 - length},
            PackingError,
            r"^cost\(5\) is 4, less than cost\(4\), 5",
        ),
        ([[1], {2, 3}], 10, 2, {}, PackingError, "rank 1: the lengths are"),
        ({0: [1], 1: [2]}, 10, 2, {}, PackingError, "one for each rank"),
    ],
)
def test_bad_arguments_are_refused(lens, cap, steps, options, error, text):
    with pytest.raises(error, match=text):
        plan_ranks(lens, cap, steps, **options)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 20), max_size=8), min_size=1, max_size=5),
    st.integers(1, 4),
    st.sampled_from(["dense", "balanced"]),
)
def test_any_ranks_are_placed_or_refused(lens, micro_steps, objective):
    try:
        plan = plan_ranks(lens, 20, micro_steps, objective=objective)
    except InfeasibleWindowError:
        # Half full packs could be merged in pairs, so twice the volume bound always fits.
        assert 2 * sum(map(sum, lens)) > 20 * micro_steps * len(lens)
    except UndecidedWindowError:
        pass
    else:
        assert_is_a_plan(plan, lens, 20, micro_steps)


def test_the_cost_of_a_model_follows_its_shape():
    cost = SegmentCost.of_model(width=1024, depth=24, vocabulary=50_000)
    assert cost(1000) == 1000 * (12 * 24 * 1024 + 50_000) + 24 * 1000**2
    with pytest.raises(PackingError, match="depth"):
        SegmentCost.of_model(width=1024, depth=0, vocabulary=1)


def test_a_plan_of_ranks_prints_its_numbers():
    assert repr(plan_ranks([[6, 6, 5, 3], [2, 2]], 8, 3)) == (
        "RanksPlan(2 ranks, 6 segments, 2 moves of 8 tokens, straggler 1.667 -> 1.000)"
    )


def test_every_process_gets_the_same_plan():
    code = (
        "from tests.packsched.test_ranks import log_normal_ranks; from packsched.ranks import plan_ranks;"
        "from dataclasses import astuple; print(astuple(plan_ranks(log_normal_ranks(5, 16), 14000, 8)))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{astuple(plan_ranks(log_normal_ranks(5, 16), 14000, 8))}\n"}


def test_no_rank_is_leveled_above_the_tokens_it_can_hold():
    """Costs that do not follow the tokens at all, so that only the token capacity keeps long segments apart."""
    rng = random.Random(60)
    for _ in range(50):
        lens = [[rng.randint(1, 100) for _ in range(rng.randint(4, 12))] for _ in range(6)]
        tokens = sum(map(sum, lens)) // 6 + 60
        held = level_ranks(lens, [[1 + length % 7 for length in rank] for rank in lens], tokens)
        assert max(sum(lens[rank][at] for rank, at in here) for here in held) <= max(tokens, *map(sum, lens))
    assert level_ranks([[4, 6], [1]], [[1, 1], [1]], 6) == [[(0, 1)], [(1, 0), (0, 0)]]


def test_the_least_moved_tokens_count_the_dearest_segments_first():
    # The mean is 14; the highest rank ends at 14, so 8 of the 22 must leave, and 8 do.
    plan = plan_ranks([[8, 8, 6], [6]], 30, 1, cost=lambda length: length)
    assert (plan.moved_tokens, plan.least_moved_tokens) == (8, 8)
    # Quadratic: of 300 - 150 in excess the length-10 segments, at 10 a token, need 15 tokens.
    plan = plan_ranks([[10, 10, 10], []], 100, 1, cost=lambda length: length * length)
    assert plan.costs == (200, 100)
    assert (plan.moved_tokens, plan.least_moved_tokens) == (10, 10)
