"""Two ranks, DDP or FSDP2, one of them with one segment or none: every reduction is its formula in every schedule."""

import itertools
import json

import pytest

from tests.distributed.launch import on_two_ranks
from tests.distributed.reductions_worker import REDUCTIONS, SCHEDULES

pytestmark = pytest.mark.distributed
CASES = list(itertools.product(SCHEDULES, REDUCTIONS, (1, 0)))
SLICE = [
    (schedule, REDUCTIONS[(at + samples) % 3], samples) for at, schedule in enumerate(SCHEDULES) for samples in (1, 0)
]
"""Every schedule with one sample and with none, and every reduction with both."""
REST = [case for case in CASES if case not in SLICE]


@pytest.fixture(scope="module")
def measure(tmp_path_factory):
    """All cases of a kind of ranks in one launch: the start costs more than they do."""
    measured = {}

    def measure(kind, cases):
        key = kind, len(cases)
        if key not in measured:
            folder = tmp_path_factory.mktemp("reductions")
            worker = "tests.distributed.reductions_worker"
            measured[key] = on_two_ranks(worker, folder, str(folder), kind, json.dumps(cases), timeout=400)
        return measured[key]

    return measure


def check(ranks, kind, schedule, reduction, samples):
    for rank in ranks:
        seen = rank[f"{schedule} / {reduction} / {samples}"]
        assert seen["sharded"] == (kind == "fsdp2")
        assert seen["difference"] < 1e-10
        assert seen["segments"] == [9, samples], "rank 0 has its whole window, rank 1 (nearly) nothing"
        assert seen["left"] == 0, "what was built was trained"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_reduction_over_two_ranks_is_its_formula(measure, case):
    check(measure("ddp", CASES), "ddp", *case)


@pytest.mark.parametrize("case", [*SLICE, *(pytest.param(case, marks=pytest.mark.ranks) for case in REST)], ids=str)
def test_a_reduction_over_sharded_ranks_is_its_formula(measure, case):
    check(measure("fsdp2", SLICE if case in SLICE else REST), "fsdp2", *case)
