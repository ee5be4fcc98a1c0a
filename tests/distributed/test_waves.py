"""Windows in waves on two ranks: the gradients of one wave under DDP and FSDP2, one failure for all, ended rollouts."""

import pytest

from tests.distributed.launch import on_two_ranks

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("waves")
    return on_two_ranks("tests.distributed.waves_worker", folder, str(folder))


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_ten_steps_in_uneven_waves_equal_those_of_one_wave(ranks, kind):
    for rank in ranks:
        found = rank[kind]
        assert max(found["gradients"]) < 1e-10
        assert found["weights"] < 1e-10
        assert found["micro_steps"] == [5] * 10
        assert found["early"] == ranks[0][kind]["early"], "ranks train equally many packs early"
        assert found["losses"][0] == pytest.approx(found["losses"][1], rel=1e-6)
    assert sum(ranks[0][kind]["early"]) >= 5, "windows train something early"
    assert ranks[0][kind]["hashes"] == ranks[1][kind]["hashes"], "weights are bit-equal on both ranks"
    assert ranks[0][kind]["waits"] == ranks[1][kind]["waits"], "ranks have the same cuts"


def test_a_rank_without_segments_waits_for_the_close_of_the_window(ranks):
    """44 samples in micro-batches of 4: the last window has one micro-batch, and only one of the ranks gets it."""
    for rank in ranks:
        found = rank["short"]
        assert max(found["gradients"]) < 1e-10
        assert found["micro_steps"][-1] < 5
    assert ranks[0]["short"]["hashes"] == ranks[1]["short"]["hashes"]


def test_a_backend_that_fails_in_a_later_wave_stops_both_ranks(ranks):
    (error, closed), (own, _) = ranks[0]["failed"], ranks[1]["failed"]
    assert own == "ConnectionError: the server is gone"
    assert error.startswith("PeerError: rank 1 failed, so rank 0 stops too. ConnectionError: the server is gone")
    assert "in step 2 on rank 1" in error
    assert closed == [True], "rank 0 ended the rollouts that it no longer needs"


def test_a_sharded_model_ends_the_rollouts_that_a_whole_one_ends(ranks):
    for rank in ranks:
        found = rank["ended"]
        assert found["sharded"]
        assert found["same"]
        assert found["by the rule"]
        assert sum(found["ended"]) >= 2, "nothing ended: nothing is shown"
    assert max(ranks[0]["ended"]["lengths"]) != max(ranks[1]["ended"]["lengths"]), "one rank waits for the other"
