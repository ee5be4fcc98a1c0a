"""Two real ranks (gloo) with an image model: one gradient, also where a rank has no image or no segment."""

import json

import pytest

from tests.distributed.launch import on_two_ranks

pytestmark = pytest.mark.distributed

WINDOW, MICRO = {"post_rollout_pack_scope": "window"}, {"post_rollout_pack_scope": "micro"}
CHECKPOINTED = {"gradient_checkpointing": True}


def run(folder, cases):
    ranks = on_two_ranks("tests.distributed.image_worker", folder, str(folder), json.dumps(cases))
    return list(zip(cases, *ranks, strict=True))


def test_gradients_with_images_on_two_ranks_are_those_of_each_segment(tmp_path):
    cases = [
        {**WINDOW, "layout": "no image", **CHECKPOINTED},
        {**WINDOW, "layout": "no segment", "idle_micro_steps": "skip"},
        {**MICRO, "layout": "no image", "sharded": True},
        {**WINDOW, "layout": "no segment", "sharded": True, "pack_objective": "balanced"},
    ]
    for case, *ranks in run(tmp_path, [{"family": "qwen3_vl", **case} for case in cases]):
        assert [rank["difference"] < 1e-10 for rank in ranks] == [True, True], (case, ranks)
        assert [rank["sharded"] for rank in ranks] == [case.get("sharded", False)] * 2
        assert (ranks[0]["images"][0] > 0, ranks[0]["images"][1]) == (True, 0)
        assert (ranks[0]["segments"][1] == 0) == (case["layout"] == "no segment")
