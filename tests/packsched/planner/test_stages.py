"""Each stage of the planner on its own: bounds never exceed the truth, searches only claim what they can show."""

import random
from functools import cache
from itertools import combinations

import pytest

from packsched import UndecidedWindowError, completion, plan_window, ruin
from packsched.planner.bin_completion import OutOfNodesError, bin_completion
from packsched.planner.bin_slack import ALLOWANCES, minimum_bin_slack, shuffled_bin_slack
from packsched.planner.bounds import (
    cardinality_bound,
    dual_feasible_bound,
    lower_bound,
    martello_toth_bound,
    volume_bound,
)
from packsched.planner.exact_cover import _cover, cover_after_setting_aside, cover_by_fours, exact_cover
from packsched.planner.greedy import best_fit_decreasing, first_fit_decreasing, longest_processing_time
from packsched.planner.levelling import longest_pack_bound
from packsched.planner.pairwise_resplit import pairwise_resplit
from packsched.planner.random_integers import Integers
from packsched.planner.ruin_and_recreate import ruin_and_recreate
from packsched.planner.stages import MOST_SEGMENTS, fit
from packsched.subset_sum import fill_room
from tests.packsched.test_window import by_every_assignment, cut_full_packs

BOUNDS = [volume_bound, martello_toth_bound, cardinality_bound, dual_feasible_bound]


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


def test_no_bound_exceeds_the_fewest_packs_and_each_one_is_the_best_somewhere():
    best_alone = set()
    for lengths, cap in small_windows(40, 1500):
        fewest, _ = by_every_assignment(lengths, cap, 1)
        found = {bound.__name__: bound(lengths, cap) for bound in BOUNDS}
        assert max(found.values()) <= fewest, (lengths, cap)
        assert lower_bound(lengths, cap)[0] == max(found.values())
        winners = [name for name, value in found.items() if value == max(found.values())]
        best_alone.update(winners if len(winners) == 1 else [])
    # The volume bound is never the best alone (f_k of a large k is nearly the same); it is the cheapest.
    assert best_alone >= {"martello_toth_bound", "cardinality_bound", "dual_feasible_bound"}


def test_known_bounds():
    assert volume_bound([5, 5, 1], 10) == 2
    assert martello_toth_bound([6, 6, 6], 10) == 3
    assert martello_toth_bound([7, 6, 4, 4], 10) == 3
    assert cardinality_bound([4, 4, 4, 4, 4], 10) == 3
    assert dual_feasible_bound([34] * 7 + [26], 100) == 4
    assert lower_bound([], 10) == (0, "no segments")


def test_the_bound_on_the_longest_pack_never_exceeds_the_shortest_possible():
    for lengths, cap in small_windows(41, 600):
        for packs in (1, 2, 3):
            _, shortest = by_every_assignment(lengths, cap, packs)
            if shortest is not None:
                assert longest_pack_bound(lengths, cap, packs) <= shortest


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


def test_exact_cover_and_bin_completion_agree_on_windows_without_slack():
    """Two independent exact searches, on windows that may or may not fit."""
    rng = random.Random(43)
    verdicts = []
    for _ in range(250):
        packs, cap = rng.randint(2, 5), rng.choice((12, 30, 90))
        lengths = sorted((rng.randint(cap // 5, cap // 2) for _ in range(3 * packs)), reverse=True)
        lengths[-1] = max(1, lengths[-1] - sum(lengths) + packs * cap)
        lengths.sort(reverse=True)
        if sum(lengths) != packs * cap or lengths[0] > cap:
            continue
        covered = exact_cover(lengths, cap, 10**6)
        assert (covered is None) == (bin_completion(lengths, cap, packs, 10**6) is None)
        verdicts.append(covered is None)
        if covered is not None:
            assert_packs(covered, lengths, cap, packs)
    assert 20 < sum(verdicts) < len(verdicts) - 20


def test_searches_that_run_out_of_nodes_claim_nothing():
    lengths = sorted(cut_full_packs(random.Random(44), 16, 4, 16384, even=True), reverse=True)
    with pytest.raises(OutOfNodesError):
        bin_completion(lengths, 16384, 16, 100)
    with pytest.raises(OutOfNodesError):
        exact_cover(lengths, 16384, 3)
    with pytest.raises(OutOfNodesError):
        exact_cover([3] * 30, 30, 10**6)  # too many ways: every ten of thirty
    with pytest.raises(OutOfNodesError):
        exact_cover([2**28] * 4, 2**29, 10**6)  # too long a bitset for each
    with pytest.raises(OutOfNodesError):
        cover_by_fours([1] * 600, 3, 10**6)  # too many pairs
    with pytest.raises(OutOfNodesError):
        exact_cover([2] * 300 + [1] * 24, 300, 10**6)  # too many steps
    with pytest.raises(OutOfNodesError):
        fit([1] * (MOST_SEGMENTS + 1), 10, MOST_SEGMENTS, 1)


def test_more_tokens_than_room_needs_no_search():
    assert bin_completion([6, 6], 10, 1, 0) is None
    assert fit([6, 6], 10, 1, 1) is None
    assert exact_cover([4, 4, 4], 10, 100) is None


def test_fours_are_covered_exactly_when_every_subset_of_at_most_four_says_so():
    rng = random.Random(44)
    verdicts = []
    for _ in range(300):
        cap, packs = rng.choice((12, 30, 100)), rng.randint(1, 4)
        lengths = cut_full_packs(rng, packs, rng.randint(1, 5), cap, even=False)
        if rng.random() < 0.5:
            lengths = sorted(max(1, length + rng.choice((-1, 0, 0, 1))) for length in lengths)[::-1]
        ways = {
            frozenset(some)
            for size in range(1, 5)
            for some in combinations(range(len(lengths)), size)
            if sum(lengths[at] for at in some) == cap
        }

        @cache
        def coverable(left, ways=frozenset(ways)):
            return not left or any(way <= left and coverable(left - way) for way in ways if min(left) in way)

        covered = cover_by_fours(lengths, cap, 10**6)
        verdicts.append(covered is None)
        assert (covered is None) == (not coverable(frozenset(range(len(lengths)))))
        if covered is not None:
            assert_packs(covered, lengths, cap, sum(lengths) // cap)
            assert max(len(pack) for pack in covered) <= 4
    assert 50 < sum(verdicts) < 250
    with pytest.raises(OutOfNodesError):
        cover_by_fours([25] * 40, 100, 10**6)  # too many ways: every four of forty
    with pytest.raises(OutOfNodesError):
        cover_by_fours([60, 40, 60, 40], 100, 1)


def test_windows_cut_at_random_into_three_or_four_a_pack_are_put_together_again():
    for packs, per_pack in ((16, 3), (32, 3), (16, 4)):
        for seed in range(8):
            lengths = cut_full_packs(random.Random(seed), packs, per_pack, 16384, even=False)
            assert plan_window(lengths, 16384, packs).non_empty == packs


def test_setting_aside_leaves_a_window_that_can_be_covered():
    lengths = sorted(cut_full_packs(random.Random(45), 24, 4, 16384, even=True), reverse=True)
    packs = cover_after_setting_aside(lengths, 16384, 24, 8, 1000)
    assert packs is not None
    assert_packs(packs, lengths, 16384, 24)
    assert cover_after_setting_aside(lengths, 16384, 24, 0, 1000) is None
    odd = sorted([2] * 99 + [3] * 34, reverse=True)
    assert cover_after_setting_aside([*odd, 1, 1], 17, 18, 3, 1) is None  # one node is never enough


def test_a_random_order_fills_packs_of_segments_that_are_alike():
    lengths = sorted(cut_full_packs(random.Random(50), 24, 16, 16384, even=True), reverse=True)
    packs = shuffled_bin_slack(lengths, 16384, 24, 4)
    assert packs is not None
    assert_packs(packs, lengths, 16384, 24)
    assert shuffled_bin_slack([6, 6], 10, 1, 3) is None
    assert shuffled_bin_slack(lengths, 16384, 24, 0) is None


def test_ruin_and_recreate_places_what_filling_left_over():
    lengths = sorted(cut_full_packs(random.Random(46), 16, 8, 16384, even=True), reverse=True)
    filled, left = minimum_bin_slack(lengths, 16384, 16, ALLOWANCES[0])
    pack = filled.pop()
    found = ruin_and_recreate(lengths, 16384, [*filled, []], left + pack, 3000)
    assert found is not None
    assert_packs(found, lengths, 16384, 16)
    assert ruin_and_recreate([6, 6], 10, [[0]], [1], 5) is None


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


def test_alike_segments_without_slack_need_no_search():
    lengths = sorted(cut_full_packs(random.Random(51), 24, 16, 16384, even=True), reverse=True)
    packs = fit(lengths, 16384, 24, 0.01)
    assert packs is not None
    assert_packs(packs, lengths, 16384, 24)
    # One short segment and they are no longer alike: longest first, then a random order.
    mixed = sorted([*cut_full_packs(random.Random(52), 23, 16, 16384, even=True), 16000, 384], reverse=True)
    packs = fit(mixed, 16384, 24, 0.01)
    assert packs is not None
    assert_packs(packs, mixed, 16384, 24)


def test_deep_searches_end_without_recursion():
    rng = random.Random(60)
    lengths = sorted((rng.choice((18, 20, 22)) for _ in range(3600)), reverse=True)
    with pytest.raises(OutOfNodesError):
        bin_completion(lengths, sum(lengths) // 3 | 1, 3, 20_000)
    assert len(bin_completion([1] * 1500, 1, 1500, 10**7) or []) == 1500
    ways = [1 << at for at in range(1500)]
    assert _cover(1500, ways, 10**4) == ways


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
    """Work is the segments handed to subset sums and the packs begun; the time follows it."""
    work = 0

    def counted(function):
        def call(lengths, *arguments):
            nonlocal work
            work += len(lengths)
            return function(lengths, *arguments)

        return call

    monkeypatch.setattr(ruin, "fill_room", counted(ruin.fill_room))
    monkeypatch.setattr(completion, "martello_toth_bound", counted(completion.martello_toth_bound))
    spent = []
    for per_pack in (30, 300, 1100):
        lengths, cap = hopeless(per_pack)
        work = 0
        with pytest.raises(UndecidedWindowError):
            plan_window(lengths, cap, 3, objective=objective)
        spent.append(work)
    assert max(spent) <= 2 * spent[0], spent


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
