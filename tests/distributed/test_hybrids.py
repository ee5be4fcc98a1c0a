"""Hybrid models on two real ranks, whole and sharded: recurrent layers keep packed segments apart."""

import json

import pytest

from tests.distributed.launch import on_two_ranks
from tests.families_table import HYBRIDS as TABLE
from tests.families_table import record
from tests.hybrids import HYBRIDS, TOLERANCE

pytestmark = pytest.mark.distributed
CELLS = {
    ", ".join([way, scope, *["no segment"] * idle, *["checkpointed"] * checkpointed]): {
        "post_rollout_pack_scope": scope,
        "sharded": way == "FSDP2",
        "idle": idle,
        "gradient_checkpointing": checkpointed,
    }
    for way in ("DDP", "FSDP2")
    for scope, idle, checkpointed in (
        ("micro", False, True),
        ("window", False, False),
        ("window", True, True),
        ("global", True, False),
    )
}
SLICE = ["FSDP2, window", "DDP, global, no segment"]


def differences(folder, family, cells):
    """Compares the gradient with the segments alone; returns the difference of each cell, the larger of both ranks."""
    cases = {cell: {"family": family, **CELLS[cell]} for cell in cells}
    worker = "tests.distributed.hybrids_worker"
    first, second = on_two_ranks(worker, folder, str(folder), json.dumps(cases), timeout=600)
    for cell, case in cases.items():
        assert first[cell]["sharded"] == second[cell]["sharded"] == case["sharded"], cell
        segments, scope = first[cell]["segments"], case["post_rollout_pack_scope"]
        assert max(len(pack) for pack in first[cell]["packs"]) > 1, cell
        assert segments[0] > 1, cell
        assert (segments[1] == 0) == (case["idle"] and scope != "global"), (cell, segments)
        assert scope == "micro" or sum(segments) == (9 if case["idle"] else 18), (cell, segments)
    return {cell: max(first[cell]["difference"], second[cell]["difference"]) for cell in cells}


def test_the_gradient_of_a_hybrid_over_two_ranks_is_that_of_its_segments(tmp_path):
    assert max(differences(tmp_path, "qwen3_5_text", SLICE).values()) < 1e-10


@pytest.mark.families
@pytest.mark.parametrize("family", HYBRIDS)
def test_every_hybrid_family_on_two_ranks(tmp_path, family):
    found = differences(tmp_path, family, CELLS)
    record(TABLE, family, found)
    assert max(found.values()) < TOLERANCE.get(family, 1e-10), found
