"""FSDP2: a rank that fails alone, before or in the middle of collective forwards, stops both with its message.

Two processes without a launcher that would end the other one: what stops it is the trainer itself.
"""

import json

import pytest

from tests.distributed.launch import start_two_ranks
from tests.processes import wait_for

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("before", "ValueError: sample 'broken' has no 'prompt_ids', only ['id']"),
        ("inside", "MemoryError: no memory left on this rank"),
    ],
)
def test_a_rank_that_fails_alone_stops_both_with_its_message(tmp_path, where, message):
    processes = wait_for(start_two_ranks("tests.distributed.failures_worker", tmp_path, where, str(tmp_path)), 180)
    assert [process.returncode for process in processes] == [1, 1], processes[0].text()[-2000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[1]["error"].startswith(message)
    assert ranks[0]["error"].startswith(f"PeerError: rank 1 failed, so rank 0 stops too. {message}")
    assert abs(ranks[0]["time"] - ranks[1]["time"]) < 30, "nobody waited for a timeout"
