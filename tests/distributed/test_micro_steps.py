"""Idle and overfull micro-steps on two real ranks, whole and sharded: one gradient, no rank left waiting."""

import pytest

from tests.distributed.test_two_ranks import run_two_ranks

pytestmark = pytest.mark.distributed
WORKER = "micro_steps_worker"
SHORT = {"post_rollout_pack_scope": "window", "global_max_length": 320}  # rank 1 has one segment only
MODELS = pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP2"])


@MODELS
def test_micro_steps_idle_on_every_rank_are_skipped_by_both(tmp_path, sharded):
    ranks = run_two_ranks("gradient", tmp_path, WORKER, idle_micro_steps="skip", sharded=sharded, **SHORT)
    assert [len([p for p in rank["packs"] if p]) for rank in ranks] == [2, 1], "unequal, and both have idle micro-steps"
    for rank in ranks:
        assert rank["difference"] < 1e-10
        assert rank["sharded"] == sharded
        assert [synchronised for _, synchronised in rank["trained"]] == [False, True], "2 forwards for 3 micro-steps"
        assert rank["log"]["packing/idle_micro_steps"] == 1
    assert ranks[1]["trained"][1][0] == 2, "where one rank has a pack, the other runs a dummy of two tokens"


@MODELS
def test_a_window_that_does_not_fit_one_rank_runs_as_many_forwards_on_both(tmp_path, sharded):
    shape = {"per_device_train_batch_size": 9, "gradient_accumulation_steps": 2, **SHORT}
    ranks = run_two_ranks("gradient", tmp_path, WORKER, on_infeasible="extra_steps", sharded=sharded, **shape)
    forwards = len(ranks[0]["packs"])
    assert forwards > 2
    assert ranks[0]["segments"] == [18, 1], "nothing is dropped"
    for rank in ranks:
        assert rank["difference"] < 1e-10
        assert rank["sharded"] == sharded
        assert [synchronised for _, synchronised in rank["trained"]] == [False] * (forwards - 1) + [True]
        assert rank["log"]["packing/extra_packs"] == forwards - 2
