"""Two real ranks (gloo) with an image model: one gradient, also where a rank has no image or no segment."""

import json

import pytest

from tests.distributed.launch import on_two_ranks
from tests.families_table import IMAGES, record
from tests.rollout_sft.step.test_image_gradients import TOLERANCE
from tests.tiny_images import CONFIGS

pytestmark = pytest.mark.distributed

SCHEDULES = {
    "micro": {"post_rollout_pack_scope": "micro"},
    "dense": {"post_rollout_pack_scope": "window", "pack_objective": "dense"},
    "balanced": {"post_rollout_pack_scope": "window", "pack_objective": "balanced"},
    "global": {"post_rollout_pack_scope": "global"},
}
CELLS = {
    ", ".join([way, schedule, layout, *["checkpointed"] * checkpointed]): {
        **SCHEDULES[schedule],
        "sharded": way == "FSDP2",
        "layout": layout,
        "gradient_checkpointing": checkpointed,
    }
    for way in ("DDP", "FSDP2")
    for schedule in SCHEDULES
    for layout in ("mixed", "no image", "no segment")
    for checkpointed in (False, True)
}
SLICE = ["DDP, dense, no image, checkpointed", "FSDP2, balanced, no segment", "FSDP2, global, no segment"]


def differences(folder, family, cells):
    """Compares both ranks' gradients with the segments alone; returns the largest difference of each cell."""
    cases = [{"family": family, **CELLS[cell]} for cell in cells]
    found = on_two_ranks("tests.distributed.image_worker", folder, str(folder), json.dumps(cases), timeout=900)
    largest = {}
    for cell, case, first, second in zip(cells, cases, *found, strict=True):
        assert first["sharded"] == second["sharded"] == case["sharded"], cell
        moves, images, segments = "global" in cell, first["images"], first["segments"]
        assert images[0] > 0, cell
        assert (images[1] == 0) == (case["layout"] != "mixed" and not moves), (cell, first)
        assert (segments[1] == 0) == (case["layout"] == "no segment" and not moves), (cell, first)
        largest[cell] = max(first["difference"], second["difference"])
    return largest


def test_gradients_with_images_on_two_ranks_are_those_of_each_segment(tmp_path):
    assert max(differences(tmp_path, "qwen3_vl", SLICE).values()) < 1e-10


def test_an_image_that_disappears_on_one_rank_ends_the_run_on_both(tmp_path):
    ranks = on_two_ranks("tests.distributed.image_worker", tmp_path, str(tmp_path), json.dumps(["deleted"]), timeout=90)
    for rank in ranks:
        assert rank[0]["step"] == 1
        assert "No such file" in rank[0]["error"], rank
        assert "gone.png" in rank[0]["error"], rank
    assert "rank 1 failed, so rank 0 stops too" in ranks[0][0]["error"]


@pytest.mark.families
def test_gradients_that_would_not_be_reduced_stop_the_run(tmp_path):
    cell = CELLS["DDP, micro, mixed, checkpointed"]
    case = {"family": "llava_onevision", **cell, "ddp_find_unused_parameters": False}
    ranks = on_two_ranks("tests.distributed.image_worker", tmp_path, str(tmp_path), json.dumps([case]))
    assert ["post_layernorm" in rank[0]["error"] for rank in ranks] == [True, True]


@pytest.mark.families
@pytest.mark.parametrize("family", CONFIGS)
def test_every_image_family_on_two_ranks(tmp_path, family):
    found = differences(tmp_path, family, CELLS)
    record(IMAGES, family, found)
    assert max(found.values()) < TOLERANCE.get(family, 1e-10), found


def test_sharded_ranks_roll_out_images_where_one_has_none(tmp_path):
    kinds = [("images", "text"), ("nothing", "images")]
    ranks = on_two_ranks("tests.distributed.image_rollouts_worker", tmp_path, str(tmp_path), json.dumps(kinds))
    assert [case["answers"] for rank in ranks for case in rank] == [5, 0, 3, 5]
    assert all(case["sharded"] and case["same"] for rank in ranks for case in rank)
