"""One training under stage 3 beside DDP, for every change; the other tests of this folder run all of them."""

import pytest

from tests.deepspeed.conftest import Runs, documented


def test_stage_3_evaluates_and_trains_as_ddp_does(tmp_path):
    zero = {**documented("json"), "bf16": {"enabled": False}}
    cell = {"post_rollout_pack_scope": "global", "idle_micro_steps": "skip", "evaluate": True, "max_steps": 2}
    runs = Runs(tmp_path, {"ddp": cell, "zero": {"stage": 3, "zero": zero, **cell}}, ("qwen3",))
    assert runs["zero"]["partitioned"]
    assert runs["zero"]["error"] is None
    assert runs.distance("zero", "ddp") < 5e-6
    assert runs["zero"]["scores"] == runs["ddp"]["scores"]
    norms = [[line["grad_norm"] for line in runs[name]["log"]] for name in ("zero", "ddp")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
