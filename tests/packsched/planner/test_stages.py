"""Each stage of the planner on its own: bounds never exceed the truth, searches only claim what they can show."""

import random
from contextlib import suppress

import pytest

from packsched import PackingError, UndecidedWindowError, plan_window
from packsched.planner import bin_completion as completion
from packsched.planner import levelling, stages
from packsched.planner.bin_completion import OutOfNodesError, bin_completion
from packsched.planner.bin_slack import FAIR_SHARE, OTHER_ALLOWANCES, minimum_bin_slack
from packsched.planner.bounds import (
    dual_feasible_bound,
    lower_bound,
    martello_toth_bound,
    shortest_segments_bound,
    volume_bound,
)
from packsched.planner.greedy import best_fit_decreasing, first_fit_decreasing, longest_processing_time
from packsched.planner.levelling import longest_pack_bound
from packsched.planner.pairwise_resplit import pairwise_resplit
from packsched.planner.random_integers import Integers
from packsched.planner.stages import MOST_SEGMENTS, STAGES, Proof, SortedWindow, fit
from packsched.subset_sum import fill_room
from tests.packsched.test_window import FIRST_FIT_WINS, by_every_assignment, cut_full_packs

BOUNDS = [volume_bound, martello_toth_bound, shortest_segments_bound, dual_feasible_bound]


def small_windows(seed, count):
    rng = random.Random(seed)
    for _ in range(count):
        cap = rng.choice((6, 7, 10, 20, 51, 100))
        low, high = rng.choice(((1, cap), (1, cap // 2), (cap // 4 + 1, cap // 2 + 1), (cap // 3, cap // 2)))
        yield sorted((rng.randint(low, high) for _ in range(rng.randint(1, 8))), reverse=True), cap


def assert_packs(packs, lengths, cap, most):
    assert sorted(at for pack in packs for at in pack) == list(range(len(lengths)))
    assert len(packs) <= most
    assert all(sum(lengths[at] for at in pack) <= cap for pack in packs)


def test_no_bound_exceeds_the_fewest_packs_and_each_is_best_somewhere():
    best_alone = set()
    for lengths, cap in small_windows(40, 1500):
        fewest, _ = by_every_assignment(lengths, cap, 1)
        found = {bound.__name__: bound(lengths, cap) for bound in BOUNDS}
        assert max(found.values()) <= fewest, (lengths, cap)
        assert lower_bound(lengths, cap)[0] == max(found.values())
        winners = [name for name, value in found.items() if value == max(found.values())]
        best_alone.update(winners if len(winners) == 1 else [])
    # The volume bound is never the best alone (f_k of a large k is nearly the same); it is the cheapest.
    assert best_alone >= {"martello_toth_bound", "shortest_segments_bound", "dual_feasible_bound"}


def test_known_bounds():
    assert volume_bound([5, 5, 1], 10) == 2
    assert martello_toth_bound([6, 6, 6], 10) == 3
    assert martello_toth_bound([7, 6, 4, 4], 10) == 3
    assert shortest_segments_bound([4, 4, 4, 4, 4], 10) == 3
    assert dual_feasible_bound([34] * 7 + [26], 100) == 4
    assert lower_bound([], 10) == (0, "no segments")


def test_the_bound_on_the_longest_pack_never_exceeds_the_shortest_possible():
    for lengths, cap in small_windows(41, 600):
        for packs in (1, 2, 3):
            _, shortest = by_every_assignment(lengths, cap, packs)
            if shortest is not None:
                assert longest_pack_bound(lengths, cap, packs) <= shortest


def test_the_longest_pack_bound_takes_few_steps_far_from_the_mean(monkeypatch):
    asked = []

    def counted(lengths, packing_length):
        asked.append(packing_length)
        return lower_bound(lengths, packing_length)

    monkeypatch.setattr(levelling, "lower_bound", counted)
    x = 30_000_000
    plan = plan_window([2 * x + 1, x, 4 * x, 2 * x + 1], 16 * x, 2, objective="balanced")
    assert (max(plan.pack_lens), plan.optimal) == (5 * x, True)  # the mean is 4.5 x
    assert 0 < len(asked) < 100


def test_bin_completion_agrees_with_every_assignment():
    verdicts = set()
    for lengths, cap in small_windows(42, 800):
        fewest, _ = by_every_assignment(lengths, cap, 1)
        for packs in range(1, fewest + 2):
            found = bin_completion(lengths, cap, packs, 10**6)
            verdicts.add(found is None)
            assert (found is None) == (packs < fewest)
            if found is not None:
                assert_packs(found, lengths, cap, packs)
    assert verdicts == {True, False}


def test_searches_that_run_out_of_nodes_claim_nothing():
    lengths = sorted(cut_full_packs(random.Random(44), 16, 4, 16384, even=True), reverse=True)
    with pytest.raises(OutOfNodesError):
        bin_completion(lengths, 16384, 16, 100)
    # Too many segments to search: no stage answers.
    assert fit(SortedWindow([1] * (MOST_SEGMENTS + 1), 2), MOST_SEGMENTS // 2 + 1, 1) is not None
    assert not SortedWindow([1] * (MOST_SEGMENTS + 1), 2).searchable


def test_more_tokens_than_room_needs_no_search():
    assert bin_completion([6, 6], 10, 1, 0) is None
    assert fit(SortedWindow([6, 6], 10), 1, 1) == Proof(2, "volume")


def test_fillings_waste_what_they_are_allowed_to():
    lengths = sorted(cut_full_packs(random.Random(50), 24, 16, 16384, even=False), reverse=True)
    packs = minimum_bin_slack(lengths, 16384, 24, [FAIR_SHARE])
    assert packs is not None
    assert_packs(packs, lengths, 16384, 24)
    assert minimum_bin_slack(lengths, 16384, 24, OTHER_ALLOWANCES) is None, "without slack all allowances are the same"
    assert minimum_bin_slack([6, 6], 10, 1, [FAIR_SHARE]) is None


@pytest.mark.parametrize("cap", [1000, 40_000])
def test_a_filling_stops_where_it_is_told_to(monkeypatch, cap):
    """No sum of even lengths reaches an odd room, so every segment is tried for every pack, until the count ends."""
    tried = []

    def counted(lengths, room, enough=0):
        tried.append(len(lengths) * ((room >> 14) + 1))
        return fill_room(lengths, room, enough)

    monkeypatch.setattr("packsched.planner.bin_slack.fill_room", counted)
    rng = random.Random(53)
    lengths = sorted((2 * rng.randint(cap // 20, cap // 5) for _ in range(200)), reverse=True)
    packs = -(-sum(lengths) // (cap + 1)) + 2
    for shifts in (0, 500, 1000):
        tried.clear()
        assert minimum_bin_slack(lengths, cap + 1, packs, [(0, 1)], shifts) is None
        assert shifts <= sum(tried) <= shifts + 200 * (cap // 16384 + 1)
    tried.clear()
    whole = minimum_bin_slack(lengths, cap + 1, packs, [(0, 1)])
    assert whole is not None
    assert minimum_bin_slack(lengths, cap + 1, packs, [(0, 1)], sum(tried) + 1) == whole


def best_fit_by_looking_at_every_pack(lengths, cap):
    packs, rooms = [], []
    for at, length in enumerate(lengths):
        fits = [(room, pack) for pack, room in enumerate(rooms) if room >= length]
        if fits:
            packs[min(fits)[1]].append(at)
            rooms[min(fits)[1]] -= length
        else:
            packs.append([at])
            rooms.append(cap - length)
    return packs


def test_best_fit_opens_a_pack_only_when_none_has_room():
    assert best_fit_decreasing([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]
    for lengths, cap in small_windows(47, 200):
        assert best_fit_decreasing(lengths, cap) == best_fit_by_looking_at_every_pack(lengths, cap)


def test_best_fit_is_the_same_with_many_bands(monkeypatch):
    monkeypatch.setattr("packsched.planner.greedy._SEGMENTS_PER_BAND", 32)
    rng = random.Random(48)
    for top in (300, 1000, 4000, 9000):
        lengths = sorted((rng.randint(1, top) for _ in range(1000)), reverse=True)
        assert best_fit_decreasing(lengths, 16384) == best_fit_by_looking_at_every_pack(lengths, 16384)


def test_leveling_starts_from_the_emptiest_pack_and_resplits_pairs():
    assert longest_processing_time([5, 5, 4, 4, 3, 3, 3], 3) == [[0, 4, 6], [1, 5], [2, 3]]
    lengths = [8, 7, 6, 5, 4]
    assert sorted(sum(lengths[at] for at in pack) for pack in pairwise_resplit(lengths, [[0, 1, 4], [2, 3]])) == [
        15,
        15,
    ]
    # Levels everything that a pair can level, and stops.
    assert pairwise_resplit([4, 4, 4], [[0], [1], [2]]) == [[0], [1], [2]]
    assert pairwise_resplit([9, 1], [[0], [1]]) == [[0], [1]]
    assert pairwise_resplit([3], [[0]]) == [[0]]


def test_a_long_fill_keeps_few_bitsets_and_finds_the_same(monkeypatch):
    rng = random.Random(49)
    for _ in range(100):
        lengths = [2 * rng.randint(1, 200) for _ in range(60)]
        whole = fill_room(lengths, 3001)
        with monkeypatch.context() as patch:
            patch.setattr("packsched.subset_sum._MOST_HISTORY_BITS", 0)
            assert fill_room(lengths, 3001) == whole
    assert fill_room([5, 3], 9, enough=9) == []
    assert fill_room([5, 3, 1], 9, enough=1) == [0, 1]


def test_the_integers_are_even_and_never_change():
    draw = Integers(1)
    assert [draw.below(1000) for _ in range(5)] == FIRST_FIVE
    counts = [0] * 7
    for _ in range(7000):
        counts[draw.below(7)] += 1
    assert min(counts) > 850
    assert sorted(Integers(2).sample(9, 9)) == list(range(9))


FIRST_FIVE = [423, 509, 648, 382, 795]


def test_similar_segments_without_slack_need_no_search():
    lengths = sorted(cut_full_packs(random.Random(51), 24, 16, 16384, even=True), reverse=True)
    packs = fit(SortedWindow(lengths, 16384), 24, 0.01)
    assert isinstance(packs, list)
    assert_packs(packs, lengths, 16384, 24)
    # One short segment and they are no longer alike.
    mixed = sorted([*cut_full_packs(random.Random(52), 23, 16, 16384, even=True), 16000, 384], reverse=True)
    packs = fit(SortedWindow(mixed, 16384), 24, 0.01)
    assert isinstance(packs, list)
    assert_packs(packs, mixed, 16384, 24)


def test_resplits_stop_where_they_are_told_to():
    lengths = sorted(cut_full_packs(random.Random(52), 8, 6, 1000, even=False), reverse=True)
    start = longest_processing_time(lengths, 8)

    def longest(packs):
        return max(sum(lengths[at] for at in pack) for pack in packs)

    level, first = longest(pairwise_resplit(lengths, start)), longest(start)
    assert level < first
    assert pairwise_resplit(lengths, start, enough=first) == start
    assert pairwise_resplit(lengths, start, splits=0) == start
    between = longest(pairwise_resplit(lengths, start, enough=first - 1))
    assert level <= between < first


def test_deep_searches_end_without_recursion():
    rng = random.Random(60)
    lengths = sorted((rng.choice((18, 20, 22)) for _ in range(3600)), reverse=True)
    with pytest.raises(OutOfNodesError):
        bin_completion(lengths, sum(lengths) // 3 | 1, 3, 20_000)
    assert len(bin_completion([1] * 1500, 1, 1500, 10**7) or []) == 1500


def hopeless(per_pack: int) -> tuple[list[int], int]:
    """Three packs with two free tokens that need five: all lengths but one are multiples of 3, and the cap is not."""
    rng = random.Random(0)
    lengths = [3 * rng.randint(2, 27) for _ in range(3 * per_pack)]
    lengths[0] += 1
    while (sum(lengths) + 2) % 9 != 6:
        lengths[1] += 3
    return lengths, (sum(lengths) + 2) // 3


@pytest.mark.parametrize("objective", ["dense", "balanced"])
def test_a_large_hopeless_window_costs_no_more_work_than_a_small_one(monkeypatch, objective):
    """Work is the segments left when a pack is begun; the time follows it."""
    work = 0

    def counted(function):
        def call(lengths, *arguments):
            nonlocal work
            work += len(lengths)
            return function(lengths, *arguments)

        return call

    monkeypatch.setattr(completion, "martello_toth_bound", counted(completion.martello_toth_bound))
    spent = []
    for per_pack in (30, 300, 1100):
        lengths, cap = hopeless(per_pack)
        work = 0
        with pytest.raises(UndecidedWindowError):
            plan_window(lengths, cap, 3, objective=objective)
        spent.append(work)
    assert 0 < max(spent) <= 2 * spent[0], spent


def test_first_fit_decreasing_is_the_textbook_one():
    for lengths, cap in small_windows(61, 500):
        rooms: list[int] = []
        packs: list[list[int]] = []
        for at, length in enumerate(lengths):
            first = next((pack for pack, room in enumerate(rooms) if room >= length), len(rooms))
            if first == len(rooms):
                rooms.append(cap)
                packs.append([])
            rooms[first] -= length
            packs[first].append(at)
        assert first_fit_decreasing(lengths, cap) == packs
    assert first_fit_decreasing([], 10) == []


def test_the_dual_feasible_bound_does_not_overflow():
    big = 2**61
    assert dual_feasible_bound([34 * big] * 7 + [26 * big], 100 * big) == 4


def first_fit_wins() -> tuple[list[int], int]:
    rng = random.Random(FIRST_FIT_WINS)
    values = [rng.randint(5, 100) for _ in range(20)]
    return [rng.choice(values) for _ in range(5000)], 150


# For each stage a window (lengths, cap) that no stage before it decides.
DECIDED_BY = {
    "best-fit decreasing": ([6, 6, 4, 1, 1], 10),
    "first-fit decreasing": first_fit_wins(),
    "first filling": ([9, 7, 7, 6, 5, 3, 3], 20),
    "bounds": ([6, 6, 6], 10),
    "level packs": ([47, 46, 42, 41, 36, 27, 27, 23], 100),
    "further fillings": ([99, 90, 85, 79, 54, 49, 41, 40, 38], 200),
    "short search": ([42, 50, 56, 30, 33, 23, 30, 30], 100),
    "column generation": ([58, 52, 49, 47, 44, 42, 41, 40, 37, 33, 31, 13], 100),
    "bin completion": ([95, 50, 41, 36, 35, 33, 32, 32, 32, 30, 29, 28, 27, 27, 24, 24, 17], 100),
}
ALGORITHMS = {
    "best-fit decreasing": "best_fit_decreasing",
    "first-fit decreasing": "first_fit_decreasing",
    "first filling": "minimum_bin_slack",
    "bounds": "lower_bound",
    "level packs": "pairwise_resplit",
    "further fillings": "minimum_bin_slack",
    "short search": "bin_completion",
    "column generation": "column_generation",
    "bin completion": "bin_completion",
}


def test_every_stage_decides_a_window_that_those_before_it_leave_open():
    assert {stage.name for stage in STAGES} == set(DECIDED_BY) == set(ALGORITHMS)
    for name, (lengths, cap) in DECIDED_BY.items():
        window = SortedWindow(sorted(lengths, reverse=True), cap)
        packs = len(window.first_fit) if name == "first-fit decreasing" else -(-window.tokens // cap)
        answers = [
            stage.name
            for stage in STAGES
            if stage.applies(window, packs) and stage.answer(window, packs, stage.work) is not None
        ]
        assert answers[0] == name


@pytest.mark.parametrize("name", sorted(DECIDED_BY.keys() - {"bounds"}))
def test_a_stage_that_is_out_of_the_table_is_never_run(monkeypatch, name):
    used = []
    algorithm = getattr(stages, ALGORITHMS[name])

    def noted(*arguments, **options):
        used.append(name)
        return algorithm(*arguments, **options)

    def plan_both():
        lengths, cap = DECIDED_BY[name]
        for objective in ("dense", "balanced"):
            with suppress(PackingError):
                plan_window(lengths, cap, -(-sum(lengths) // cap), objective=objective)

    monkeypatch.setattr(stages, ALGORITHMS[name], noted)
    plan_both()
    assert used
    used.clear()
    # Two lines share an algorithm; it is never run without both.
    others = tuple(stage for stage in STAGES if ALGORITHMS[stage.name] != ALGORITHMS[name])
    monkeypatch.setattr(stages, "STAGES", others)
    plan_both()
    assert not used


def test_small_windows_are_decided_without_any_one_heuristic(monkeypatch):
    for left_out in {stage.name for stage in STAGES} - {"bin completion"}:
        monkeypatch.setattr(stages, "STAGES", tuple(stage for stage in STAGES if stage.name != left_out))
        for lengths, cap in small_windows(73, 60):
            fewest, _ = by_every_assignment(lengths, cap, 1)
            plan = plan_window(lengths, cap, len(lengths))
            assert (plan.non_empty, plan.optimal) == (fewest, True)


def test_no_effort_makes_a_cheap_answer_dear(monkeypatch):
    """A search that could take years waits for the cheap stages behind it; the answer is that of effort 1."""
    spent = 0
    stages_in_table = stages.STAGES

    def counted(stage):
        def answer(window, packs, work):
            nonlocal spent
            spent += work
            return stage.answer(window, packs, work)

        return stage._replace(answer=answer)

    monkeypatch.setattr(stages, "STAGES", tuple(map(counted, stages_in_table)))
    for name, (lengths, cap) in DECIDED_BY.items():
        work = {}
        for effort in (1, 10**12):
            spent = 0
            with suppress(PackingError):
                plan_window(lengths, cap, -(-sum(lengths) // cap), effort=effort)
            work[effort] = spent
        assert 0 < work[10**12] <= work[1], name


def test_more_effort_decides_all_that_less_effort_does():
    undecided = []
    for effort in (0.01, 0.1, 1, 3):
        rng = random.Random(74)
        left = set()
        for at in range(12):
            lengths = cut_full_packs(rng, 8, 3 + at % 3, 1000, even=at % 2 == 0)
            try:
                assert_packs(plan_window(lengths, 1000, 8, effort=effort).packs, lengths, 1000, 8)
            except UndecidedWindowError:
                left.add(at)
        undecided.append(left)
    assert undecided[0] > undecided[1] >= undecided[2] >= undecided[3]
