"""Hybrid models on two real ranks, whole and sharded: recurrent layers keep packed segments apart."""

import json

import pytest

from tests.distributed.launch import on_two_ranks
from tests.hybrids import FLOAT32, HYBRIDS, TOLERANCE

pytestmark = pytest.mark.distributed
SLICE = {"qwen3_5_text, FSDP2": {"family": "qwen3_5_text", "sharded": True}}


def on_both_ranks(folder, cases, timeout):
    cases = {name: {"post_rollout_pack_scope": "window", **case} for name, case in cases.items()}
    ranks = on_two_ranks("tests.distributed.hybrids_worker", folder, str(folder), json.dumps(cases), timeout=timeout)
    for rank in ranks:
        for name, case in cases.items():
            assert rank[name]["difference"] < TOLERANCE.get(case["family"], 1e-10), name
            assert rank[name]["sharded"] == case.get("sharded", False), name
            assert sum(rank[name]["segments"]) == (10 if case["post_rollout_pack_scope"] == "window" else 18), name


def test_the_gradient_of_a_hybrid_over_two_ranks_is_that_of_its_segments(tmp_path):
    on_both_ranks(tmp_path, SLICE, timeout=240)


@pytest.mark.families
@pytest.mark.parametrize("family", [f for f in HYBRIDS if f not in FLOAT32])
def test_every_hybrid_family_on_two_ranks(tmp_path, family):
    cases = {
        f"{scope}, {'FSDP2' if sharded else 'DDP'}": {
            "family": family,
            "sharded": sharded,
            "post_rollout_pack_scope": scope,
        }
        for scope in ("micro", "window", "global")
        for sharded in (False, True)
    }
    on_both_ranks(tmp_path, cases, timeout=400)
