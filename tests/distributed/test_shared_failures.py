"""Saving, resuming, evaluating and probing: whichever rank fails, both raise, with that rank's message."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failures")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *("-m", "tests.distributed.shared_failures_worker", str(folder)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(
    ("scenario", "rank", "message"),
    [
        ("save_on_a_full_disk", 1, "OSError: [Errno 28] No space left on device"),
        ("resume_without_a_buffer", 1, "ValueError: "),
        ("evaluate_a_broken_file", 0, "OSError: sample "),
        ("leak_on_one_rank", 1, "LeakError: packed segments see each other here"),
    ],
)
def test_a_failure_of_one_rank_reaches_the_other(ended, scenario, rank, message):
    own = ended[rank][scenario]["error"]
    assert own.startswith(message)
    other = ended[1 - rank][scenario]["error"]
    assert other == f"PeerError: rank {rank} failed, so rank {1 - rank} stops too. {own}"


def test_a_checkpoint_that_one_rank_could_not_write_is_not_marked(ended):
    assert [rank["save_on_a_full_disk"]["finished"] for rank in ended] == [[], []]


def test_a_missing_buffer_is_named_with_the_way_out(ended):
    error = ended[1]["resume_without_a_buffer"]["error"]
    assert "carry_buffer_rank1.pt" in error
    assert "post_rollout_pack_scope: window" in error
