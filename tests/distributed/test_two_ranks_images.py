"""Two real ranks (gloo) with an image model: one gradient, also where a rank has no image or no segment."""

import json

import pytest

from tests.distributed.launch import on_two_ranks
from tests.rollout_sft.step.test_image_gradients import TOLERANCE
from tests.tiny_images import CONFIGS

pytestmark = pytest.mark.distributed

MICRO = {"post_rollout_pack_scope": "micro"}
DENSE = {"post_rollout_pack_scope": "window", "pack_objective": "dense"}
BALANCED = {"post_rollout_pack_scope": "window", "pack_objective": "balanced"}
CHECKPOINTED = {"gradient_checkpointing": True}
LAYOUTS = [
    {**MICRO, "layout": "mixed"},
    {**MICRO, "layout": "no image", **CHECKPOINTED},
    {**DENSE, "layout": "no image"},
    {**DENSE, "layout": "no segment", **CHECKPOINTED},
    {**BALANCED, "layout": "no segment"},
    {**BALANCED, "layout": "mixed", **CHECKPOINTED},
    {"post_rollout_pack_scope": "global", "layout": "mixed"},
]


def differences(folder, family, cases):
    """Compares both ranks' gradients with the segments alone; returns the largest difference of each case."""
    cases = [{"family": family, **case} for case in cases]
    found = on_two_ranks("tests.distributed.image_worker", folder, str(folder), json.dumps(cases))
    largest = []
    for case, first, second in zip(cases, *found, strict=True):
        assert first["sharded"] == second["sharded"] == case.get("sharded", False)
        assert first["images"][0] > 0
        assert (first["images"][1] == 0) == (case["layout"] != "mixed"), first
        assert (first["segments"][1] == 0) == (case["layout"] == "no segment"), first
        largest.append(max(first["difference"], second["difference"]))
    return largest


def test_gradients_with_images_on_two_ranks_are_those_of_each_segment(tmp_path):
    cases = [LAYOUTS[1], {**LAYOUTS[4], "sharded": True}]
    assert max(differences(tmp_path, "qwen3_vl", cases)) < 1e-10


@pytest.mark.families
def test_gradients_that_would_not_be_reduced_stop_the_run(tmp_path):
    case = {"family": "llava_onevision", **LAYOUTS[0], **CHECKPOINTED, "ddp_find_unused_parameters": False}
    ranks = on_two_ranks("tests.distributed.image_worker", tmp_path, str(tmp_path), json.dumps([case]))
    assert ["post_layernorm" in rank[0]["error"] for rank in ranks] == [True, True]


@pytest.mark.families
@pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP2"])
@pytest.mark.parametrize("family", CONFIGS)
def test_every_image_family_on_two_ranks(tmp_path, family, sharded):
    found = differences(tmp_path, family, [{**case, "sharded": sharded} for case in LAYOUTS])
    print(family, "FSDP2" if sharded else "DDP", [f"{difference:.1e}" for difference in found])
    assert max(found) < TOLERANCE.get(family, 1e-10)


def test_sharded_ranks_roll_out_images_where_one_has_none(tmp_path):
    kinds = [("images", "text"), ("nothing", "images")]
    ranks = on_two_ranks("tests.distributed.image_rollouts_worker", tmp_path, str(tmp_path), json.dumps(kinds))
    assert [case["answers"] for rank in ranks for case in rank] == [5, 0, 3, 5]
    assert all(case["sharded"] and case["same"] for rank in ranks for case in rank)
