"""Two ranks, DDP or FSDP2, one of them with one segment or none: every reduction is its formula in every schedule."""

import pytest

from tests.distributed.launch import on_two_ranks

pytestmark = pytest.mark.distributed
SCHEDULES = ("padded", "micro", "window, dense", "window, balanced")


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def measured(request, tmp_path_factory):
    """All combinations in one launch: the start costs more than they do."""
    folder = tmp_path_factory.mktemp("reductions")
    ranks = on_two_ranks("tests.distributed.reductions_worker", folder, str(folder), request.param, timeout=400)
    return request.param, ranks


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
