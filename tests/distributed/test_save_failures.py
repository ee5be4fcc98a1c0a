"""Whichever file of a checkpoint cannot be written, on whichever rank: both raise, and the last good one stays."""

import pytest

from tests.distributed.launch import on_two_ranks
from tests.distributed.save_failures_worker import FILES

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saves")
    return on_two_ranks("tests.distributed.save_failures_worker", folder, str(folder))


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_one_rank_cannot_write_stops_both(ended, name):
    own, other = ended[FILES[name]], ended[1 - FILES[name]]
    cases = [case for case in own if case.startswith(f"{name} ")]
    assert cases
    for case in cases:
        message = own[case]["error"]
        assert message is not None, case
        assert not message.startswith("PeerError"), (case, message)
        assert other[case]["error"].startswith(f"PeerError: rank {FILES[name]} failed, so rank "), case
        assert other[case]["error"].endswith(message), case


def test_the_checkpoint_before_a_failed_save_stays_finished(ended):
    for rank in ended:
        for case, result in rank.items():
            assert result["finished"] == ["checkpoint-1"], case
            assert result["step"] == 2, case
