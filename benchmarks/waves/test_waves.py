"""The simulation agrees with steps that are counted by hand."""

import pytest

from benchmarks.waves.step import Costs, Window, iterations, simulate, waves_by_block, waves_by_length

COSTS = Costs(iteration=1.0, sample=0.0, pack=1.0, token=0.1)
WINDOW = Window(responses=(2, 10, 4), segments=(10, 10, 10), packing_length=10, micro_steps=3, slots=3)


def test_waves_train_while_the_others_are_generated():
    one = simulate(WINDOW, waves_by_length(WINDOW, []), COSTS, 0.8)
    two = simulate(WINDOW, waves_by_length(WINDOW, [4]), COSTS, 0.8)
    assert (one.seconds, one.rollout, one.waited, one.packs) == (16.0, 10.0, 10.0, 3)
    assert (two.seconds, two.rollout, two.waited, two.packs) == (12.0, 10.0, 6.0, 3), "5 + 1 spent waiting, 4 training"


def test_a_pack_that_is_not_full_waits_for_the_next_wave():
    half = Window(responses=(2, 10), segments=(5, 5), packing_length=10, micro_steps=2, slots=2)
    waits = simulate(half, waves_by_length(half, [2]), COSTS, 0.8)
    trains = simulate(half, waves_by_length(half, [2]), COSTS, 0.5)
    assert (waits.seconds, waits.packs) == (12.0, 1)
    assert (trains.seconds, trains.packs) == (11.5, 2)


@pytest.mark.parametrize(("slots", "starts"), [(1, [0, 2, 12]), (2, [0, 0, 2]), (3, [0, 0, 0])])
def test_requests_wait_in_order_for_a_place_on_the_server(slots, starts):
    window = Window(responses=(2, 10, 4), segments=(1, 1, 1), packing_length=9, micro_steps=1, slots=slots)
    assert iterations(window)[0] == starts


def test_a_wave_by_length_waits_until_all_have_passed_its_cut_and_a_block_for_its_own():
    queued = Window(responses=(2, 10, 4), segments=(1, 1, 1), packing_length=9, micro_steps=1, slots=2)
    assert waves_by_length(queued, [3]) == [(6, [0]), (10, [1, 2])]
    assert waves_by_block(queued, 3) == [(2, [0]), (10, [1]), (6, [2])]
