"""Whichever file of a checkpoint cannot be written, on whichever rank: both raise, and the last good one stays."""

import json

import pytest

from tests.distributed.launch import on_two_ranks
from tests.distributed.save_failures_worker import FILES, IN_COLLECTIVES, SHARDED_FILES

pytestmark = pytest.mark.distributed
WORKER = "tests.distributed.save_failures_worker"
CASES = [(name, "micro", True) for name in FILES]
CASES += [(name, "window", best) for name in ("model.safetensors", "rng_state_1.pth") for best in (True, False)]
SHARED = [name for name in SHARDED_FILES if name not in IN_COLLECTIVES]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saves")
    return on_two_ranks(WORKER, folder, str(folder), "ddp", json.dumps(CASES))


def check(own, other, case, rank):
    """The rank that cannot write raises its own error, the other one a PeerError with that message."""
    message = own[case]["error"]
    assert message is not None, case
    assert not message.startswith("PeerError"), (case, message)
    assert other[case]["error"].startswith(f"PeerError: rank {rank} failed, so rank "), (case, other[case]["error"])
    assert other[case]["error"].endswith(message), case
    for result in (own[case], other[case]):
        assert result["finished"] == ["checkpoint-1"], case
        assert result["step"] == 2, case


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_one_rank_cannot_write_stops_both(ended, name):
    own, other = ended[FILES[name]], ended[1 - FILES[name]]
    cases = [case for case in own if case.startswith(f"{name} ")]
    assert cases
    for case in cases:
        check(own, other, case, FILES[name])


def test_the_checkpoint_before_a_failed_save_stays_finished(ended):
    for rank in ended:
        assert len(rank) == len(CASES)
        for case, result in rank.items():
            assert result["finished"] == ["checkpoint-1"], case
            assert result["step"] == 2, case


def run_sharded(folder, cases):
    """FSDP2 through accelerate: many failures that the ranks share, and at most one, the last, that ends them."""
    ended = on_two_ranks(WORKER, folder, str(folder), "fsdp2", json.dumps(cases), keep_store=True)
    for name, scope, best in cases:
        rank, case = SHARDED_FILES[name], f"{name} {scope} {best}"
        assert ended[0][case]["sharded"], "accelerate did not shard, so that nothing is shown"
        check(ended[rank], ended[1 - rank], case, rank)


def test_a_file_of_sharded_weights_that_cannot_be_written_stops_both(tmp_path):
    cases = [("model.safetensors", "window"), ("carry_buffer_rank1.pt", "micro"), ("optimizer.bin", "window")]
    run_sharded(tmp_path, [(*case, False) for case in cases])


@pytest.mark.ranks
@pytest.mark.parametrize("best", [False, True], ids=["", "best"])
@pytest.mark.parametrize("scope", ["micro", "window"])
@pytest.mark.parametrize("last", IN_COLLECTIVES)
def test_every_file_of_sharded_weights_in_both_scopes(tmp_path, scope, last, best):
    quarter = SHARED[IN_COLLECTIVES.index(last) :: len(IN_COLLECTIVES)]
    names = [name for name in quarter if scope == "micro" or not name.startswith("carry")]
    run_sharded(tmp_path, [(name, scope, best) for name in (*names, last)])
