"""FSDP2: a rank that fails alone, before or in the middle of collective forwards, stops both with its message.

Two processes without a launcher that would end the other one: what stops it is the trainer itself.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.distributed.launch import ROOT
from tests.faults.runs import free_port

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("before", "ValueError: sample 'broken' has no 'prompt_ids', only ['id']"),
        ("inside", "MemoryError: no memory left on this rank"),
    ],
)
def test_a_rank_that_fails_alone_stops_both_with_its_message(tmp_path, where, message):
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    environment = {**os.environ, **shared, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.distributed.failures_worker", where, str(tmp_path)]
    processes = []
    for rank in ("0", "1"):
        with (tmp_path / f"output{rank}.txt").open("w") as output:
            own = {**environment, "RANK": rank, "LOCAL_RANK": rank}
            processes.append(subprocess.Popen(command, env=own, cwd=ROOT, stdout=output, stderr=output))
    try:
        codes = [process.wait(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [1, 1], (tmp_path / "output0.txt").read_text()[-2000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[1]["error"].startswith(message)
    assert ranks[0]["error"].startswith(f"PeerError: rank 1 failed, so rank 0 stops too. {message}")
    assert abs(ranks[0]["time"] - ranks[1]["time"]) < 30, "nobody waited for a timeout"
