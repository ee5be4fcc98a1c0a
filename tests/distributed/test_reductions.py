"""Two ranks, DDP or FSDP2, one of them with one segment or none: every reduction is its formula in every schedule."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[2]
SCHEDULES = ("padded", "micro", "window, dense", "window, balanced")


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def measured(request, tmp_path_factory):
    """All combinations in one launch: the start costs more than they do."""
    folder = tmp_path_factory.mktemp("reductions")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *("-m", "tests.distributed.reductions_worker", str(folder), request.param),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return request.param, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("samples", [1, 0])
@pytest.mark.parametrize("reduction", ["token", "segment", "micro"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_reduction_over_two_ranks_is_its_formula(measured, schedule, reduction, samples):
    kind, ranks = measured
    for rank in ranks:
        seen = rank[f"{schedule} / {reduction} / {samples}"]
        assert seen["sharded"] == (kind == "fsdp2")
        assert seen["difference"] < 1e-10
        assert seen["segments"] == [9, samples], "rank 0 has its whole window, rank 1 (nearly) nothing"
        assert seen["left"] == 0, "what was built was trained"
