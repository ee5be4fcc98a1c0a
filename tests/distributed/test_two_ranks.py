"""Two real ranks (gloo): one gradient, one evaluation, one failure."""

import json

import pytest

from tests.distributed.launch import on_two_ranks

pytestmark = pytest.mark.distributed


def run_two_ranks(work, folder, worker="worker", **overrides):
    return on_two_ranks(f"tests.distributed.{worker}", folder, work, str(folder), json.dumps(overrides))


@pytest.mark.parametrize(
    "schedule",
    [
        {"post_rollout_pack_scope": "window"},
        {"post_rollout_pack_scope": "micro"},
        {"post_rollout_pack_scope": "window", "sharded": True},
        {"post_rollout_pack_scope": "micro", "sharded": True},
    ],
    ids=["window", "micro", "window, FSDP2", "micro, FSDP2"],
)
def test_the_gradient_over_two_ranks_is_that_of_all_segments_one_by_one(tmp_path, schedule):
    ranks = run_two_ranks("gradient", tmp_path, **schedule)
    for rank in ranks:
        assert rank["difference"] < 1e-10
        assert rank["sharded"] == schedule.get("sharded", False)
        assert rank["log"]["packing/segments"] == sum(rank["segments"]) / 2, "the log counts both ranks"
    if schedule["post_rollout_pack_scope"] == "window":
        assert ranks[0]["segments"] == [9, 1], "one rank's packs are all but empty"
        assert ranks[1]["packs"][1:] == [[], []]


def test_evaluation_counts_every_sample_once(tmp_path):
    ranks = run_two_ranks("evaluation", tmp_path)
    assert [rank["mean_number"] for rank in ranks] == [2.0, 2.0], "the mean of samples 0 to 4, each once"
    assert len(ranks[0]["seen"]) + len(ranks[1]["seen"]) > 5, "no batch was padded: the test would show nothing"


def test_a_failure_on_one_rank_stops_both_with_its_message(tmp_path):
    ranks = run_two_ranks("failure", tmp_path, post_rollout_pack_scope="window")
    assert ranks[1]["error"] == "OSError: the engine on this rank went away"
    assert ranks[0]["error"].startswith("PeerError: rank 1 failed, so rank 0 stops too. OSError: the engine on this")
