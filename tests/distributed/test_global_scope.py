"""Scope `global` on real ranks (gloo): segments change ranks, and neither gradient nor weights show it."""

import json
import re

import pytest

from tests.distributed.launch import on_ranks

pytestmark = pytest.mark.distributed
DDP = {"sharded": False, "validate_schedule": "first_window", "pack_objective": "cost"}
FSDP2 = {"sharded": True}
IMAGES = {}


def compare(folder, ranks, *cases):
    found = on_ranks("tests.distributed.global_worker", folder, str(folder), json.dumps(cases), ranks=ranks)
    return [[rank[number] for rank in found] for number in range(len(cases) + 1)]


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.ranks)])
def test_ten_steps_equal_scope_window_though_segments_change_ranks(tmp_path, ranks):
    *texts, images, refused = compare(tmp_path, ranks, DDP, FSDP2, IMAGES)
    kind, message = refused[0]
    assert refused == [refused[0]] * ranks, "every rank raises, with the same numbers"
    assert kind == "InfeasibleWindowError"
    assert re.search(f"window of all {ranks} ranks, with 1 micro-step each; at least . more packs? would be", message)
    assert message.endswith("or set on_infeasible: extra_steps.")
    for rank in images:
        assert rank["gradient"] <= 1e-10
    if ranks == 2:
        assert [rank["images"][0] for rank in images] == [0, 18]
        assert images[0]["images"][1] > 0, "no image moved: nothing is shown"
        assert sum(rank["images"][1] for rank in images) == 18
    for case in texts:
        assert any(any(rank["infeasible_alone"]) for rank in case), "scope window alone would stop: nothing is shown"
        for step in range(10):
            before, after = (sorted(n for rank in case for n in rank[when][step]) for when in ("before", "after"))
            assert before == after, "every segment is trained once, by some rank"
            tokens = [sum(rank["before"][step]) for rank in case], [sum(rank["after"][step]) for rank in case]
            assert max(tokens[1]) * ranks <= 1.25 * sum(tokens[1]) < max(tokens[0]) * ranks
        for rank in case:
            assert max(rank["gradients"]) <= 1e-10
            assert rank["weights"] <= 1e-10
            assert rank["hashes"] == case[0]["hashes"], "weights are bit-equal on all ranks"
            assert len(set(rank["hashes"])) == 10
            assert all(line["balance/tokens_moved"] > 0 for line in rank["log"])
            assert all(line["balance/cost_max_over_mean"] < 1.25 for line in rank["log"])
            assert all(0 < line["time/exchange_s"] < 10 for line in rank["log"])
        checked = ["balance/predicted_over_measured" in line for line in case[0]["log"]]
        assert checked == [not case[0]["sharded"] and step > 0 for step in range(10)], "from the packs of the last step"
