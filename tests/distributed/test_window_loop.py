"""The examples for other trainers under DDP: ranks with unequal packs reach the gradient of all their samples."""

import pytest

from tests.distributed.launch import on_two_ranks

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("window_loop")
    return on_two_ranks("tests.distributed.window_loop_worker", folder, str(folder))


def test_the_plain_loop_gives_the_unpacked_gradient(ranks):
    for found in ranks:
        apart, forwards = found["plain"]
        assert apart < 1e-12
        assert forwards[0] == 2, "three packs: one rank runs two, the other one and a dummy"


@pytest.mark.parametrize("name", ["grpo", "stock"])
def test_rollouts_and_the_stock_trainer_give_it_too(ranks, name):
    assert all(found[name][0] < 1e-12 for found in ranks)


def test_sharded_ranks_with_unequal_packs_reach_the_unpacked_gradient(ranks):
    assert all(found["sharded"] < 1e-12 for found in ranks)


def test_the_stock_trainer_takes_as_many_steps_as_its_windows(ranks):
    assert [found["stock"][1] for found in ranks] == [6, 6], "72 samples in windows of 32, twice"


def test_every_rank_refuses_a_window_that_one_rank_has_too_few_batches_for(ranks):
    assert {found["too few"][:68] for found in ranks} == {
        "the ranks have [3, 2] batches, but one of them needs 3 forwards; give eve"[:68]
    }


def test_every_rank_refuses_a_window_without_supervision(ranks):
    assert all("no weight on any rank" in found["nothing"] for found in ranks)
