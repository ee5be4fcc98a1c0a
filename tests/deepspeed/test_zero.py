"""ZeRO 1, 2 and 3 train as DDP does, on two ranks of which one has a single segment; what is saved, resumes."""

import pytest

from tests.deepspeed.conftest import Runs, documented

STAGES = (1, 2, 3)
SCENARIOS = {
    "micro": {"post_rollout_pack_scope": "micro"},
    "skip": {"post_rollout_pack_scope": "window", "idle_micro_steps": "skip", "max_grad_norm": 0.0},
    "extra steps": {"post_rollout_pack_scope": "window", "on_infeasible": "extra_steps", "global_max_length": 128},
    "global": {"post_rollout_pack_scope": "global", "idle_micro_steps": "skip", "evaluate": True},
    "lora": {"post_rollout_pack_scope": "window", "lora": True, "evaluate": True},
}
HYBRIDS = ("lfm2", "qwen3_5_text")
"""Their convolutions and recurrent layers run each segment of a pack alone, so ranks would make other calls."""
HYBRID = {"post_rollout_pack_scope": "window", "learning_rate": 0.02}
SAVES = {
    "post_rollout_pack_scope": "window",
    "optim": "adamw_torch",
    "learning_rate": 1e-2,
    "save_strategy": "steps",
    "save_steps": 2,
}


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    folder, zero = tmp_path_factory.mktemp("zero"), documented("json")
    zero["bf16"] = {"enabled": False}
    cells = {f"ddp, {name}": given for name, given in SCENARIOS.items()}
    cells |= {f"ddp, {family}": {"family": family, **HYBRID} for family in HYBRIDS}
    for stage in STAGES:
        shared = {"stage": stage, "zero": zero}
        cells |= {f"{stage}, {name}": {**shared, **given} for name, given in SCENARIOS.items()}
        saved = str(folder / f"{stage}, saved" / "checkpoint-2")
        cells[f"{stage}, saved"] = {**shared, **SAVES}
        cells[f"{stage}, resumed"] = {**shared, **SAVES, "resume_from_checkpoint": saved}
        cells[f"{stage}, nan"] = {**shared, **SCENARIOS["skip"], "fault": "nan"}
        cells[f"{stage}, weights"] = {**shared, **SAVES, "fault": "weights"}
        for fault in ("exchanged", "exchanged, unmarked"):
            cells[f"{stage}, {fault}"] = {**cells[f"{stage}, resumed"], "fault": fault}
    shared = {"stage": 3, "zero": zero}
    cells |= {f"3, {family}": {"family": family, **shared, **HYBRID} for family in HYBRIDS}
    saved = str(folder / "3, lora saved" / "checkpoint-2")
    cells["3, lora saved"] = {**shared, **SAVES, "lora": True}
    cells["3, lora resumed"] = {**cells["3, lora saved"], "resume_from_checkpoint": saved}
    cells["1, late"] = {"stage": 1, "zero": zero, **SCENARIOS["skip"], "fault": "late"}
    cells["2, early"] = {"stage": 2, "zero": zero, **SCENARIOS["extra steps"], "fault": "early"}
    cells["3, shares"] = {**shared, **SCENARIOS["skip"], "fault": "shares"}
    return Runs(folder, cells, ("qwen3", *HYBRIDS))


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("stage", STAGES)
def test_four_steps_equal_those_of_ddp(runs, stage, scenario):
    name, ddp = f"{stage}, {scenario}", runs[f"ddp, {scenario}"]
    assert runs[name]["error"] is None
    assert (runs[name]["engine"], ddp["engine"]) == ("DeepSpeedEngine", "DistributedDataParallel")
    assert [rank[name]["trained"] for rank in runs.ranks] == [
        rank[f"ddp, {scenario}"]["trained"] for rank in runs.ranks
    ]
    assert runs.distance(name, f"ddp, {scenario}") < 5e-6
    assert [line["grad_norm"] for line in runs[name]["log"]] == pytest.approx(
        [line["grad_norm"] for line in ddp["log"]], rel=1e-5
    )
    assert runs[name]["scores"] == ddp["scores"]
    one, other = (rank[name]["forwards"] for rank in runs.ranks)
    assert one == other


def test_the_ranks_are_uneven_and_the_scenarios_are_what_they_say(runs):
    for stage in STAGES:
        full, thin = (rank[f"{stage}, extra steps"] for rank in runs.ranks)
        assert min(map(len, full["packs"])) > 3, "more packs than micro-steps"
        assert all(sum(map(bool, packs)) == 1 for packs in thin["packs"])
        assert set(runs[f"{stage}, skip"]["forwards"]) < {1, 2}, "fewer forwards than the three micro-steps"
        assert runs[f"{stage}, micro"]["forwards"] == [3] * 4
        moved = [line["balance/tokens_moved"] for line in runs[f"{stage}, global"]["log"]]
        assert max(moved) > 0
    assert runs["3, global"]["partitioned"]
    assert not runs["2, global"]["partitioned"]


@pytest.mark.parametrize("family", HYBRIDS)
def test_ranks_with_other_segments_meet_in_every_layer_of_stage_3(runs, family):
    assert runs[f"3, {family}"]["error"] is None
    assert runs.distance(f"3, {family}", f"ddp, {family}") < 5e-5
    segments = [[len(pack) for pack in rank[f"3, {family}"]["packs"][0]] for rank in runs.ranks]
    assert segments[0] != segments[1]


@pytest.mark.parametrize("name", ["1, ", "2, ", "3, ", "3, lora "])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(runs, name):
    assert runs[f"{name}resumed"]["error"] is None
    assert runs.distance(f"{name}resumed", f"{name}saved") == 0
    assert runs.distance(f"{name}saved", f"ddp, {'lora' if 'lora' in name else 'skip'}") > 0
    assert runs[f"{name}resumed"]["versions"] > 2, "two steps, and the weights of the checkpoint"


@pytest.mark.parametrize("stage", STAGES)
def test_exchanged_shares_of_the_ranks_in_a_checkpoint_are_found(runs, stage):
    assert "DamagedCheckpointError" in runs[f"{stage}, exchanged"]["error"]
    unmarked = f"{stage}, exchanged, unmarked"
    assert runs[unmarked]["error"] is not None or runs.distance(unmarked, f"{stage}, saved") > 1e-3


@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_that_is_not_finite_ends_the_run_on_all_ranks_before_the_step(runs, stage):
    for rank in runs.ranks:
        assert "NonFiniteError: step 3: the norm of the gradient is " in rank[f"{stage}, nan"]["error"]
        assert "on_non_finite: skip" not in rank[f"{stage}, nan"]["error"]
    assert all(weights.isfinite().all() for weights in runs.weights(f"{stage}, nan").values())


@pytest.mark.parametrize("stage", STAGES)
def test_weights_that_are_not_finite_are_never_saved(runs, stage):
    assert "holds values that are not finite after the optimizer's step" in runs[f"{stage}, weights"]["error"]
    assert not (runs.folder / f"{stage}, weights" / "checkpoint-2").exists()


@pytest.mark.parametrize(
    ("fault", "right"), [("1, late", "ddp, skip"), ("2, early", "ddp, extra steps"), ("3, shares", "ddp, skip")]
)
def test_a_planted_fault_is_seen_by_the_comparison_with_ddp(runs, fault, right):
    assert runs.distance(fault, right) > 1e-3
