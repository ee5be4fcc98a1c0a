"""Two real ranks (torchrun, gloo): an engine for each, one engine for both, and a failure that both learn of."""

import json
from pathlib import Path

import pytest

from tests.distributed.launch import on_two_ranks
from tests.vllm.servers import free_port

pytestmark = pytest.mark.distributed


def run_two_ranks(work, folder, **overrides):
    # A forked process ends without vLLM's clean-up; an engine of two ranks does not start beside what is left.
    for left in Path("/dev/shm").glob("-tp:0-*-cpushm_*"):
        left.unlink()
    return on_two_ranks("tests.vllm.worker", folder, work, str(folder), json.dumps(overrides))


@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
def test_every_rank_rolls_out_with_the_weights_of_each_step(tmp_path, tensor_parallel_size):
    engine_args = {"kv_cache_memory_bytes": 64 << 20}
    ranks = run_two_ranks(
        "training", tmp_path, vllm={"engine_args": engine_args, "tensor_parallel_size": tensor_parallel_size}
    )
    for rank in ranks:
        assert rank["compared"] == [True] * 3
        assert rank["after"]
        assert rank["shared"] == 3


def test_ranks_of_one_engine_end_the_same_responses(tmp_path):
    vllm = {"engine_args": {"kv_cache_memory_bytes": 64 << 20}, "tensor_parallel_size": 2}
    ranks = run_two_ranks("training", tmp_path, vllm=vllm, end_rollouts="closed", decoding={"max_new_tokens": 48})
    for rank in ranks:
        assert rank["compared"] == [True] * 3
        assert rank["after"]
        assert rank["ended"] > 0


def test_sharded_weights_are_gathered_for_every_engine(tmp_path):
    engine_args = {"kv_cache_memory_bytes": 64 << 20}
    for rank in run_two_ranks("training", tmp_path, sharded=True, vllm={"engine_args": engine_args}):
        assert rank["sharded"]
        assert rank["compared"] == [True] * 3
        assert rank["after"]


@pytest.mark.parametrize(("transfer", "sharded"), [("folder", False), ("folder", True), ("gloo", True)])
def test_two_ranks_share_the_servers(servers, tmp_path, transfer, sharded):
    urls = [servers["tied"].wait().url, servers["other tokenizer"].wait().url]
    server = {"mode": "server", "base_url": urls, "engine_args": {}, "weight_transfer": transfer}
    ranks = run_two_ranks("training", tmp_path, sharded=sharded, vllm=server)
    for rank in ranks:
        assert rank["sharded"] == sharded
        assert rank["compared"] == [True] * 3
        assert rank["after"]


def test_a_server_that_is_down_stops_both_ranks_with_one_message(tmp_path):
    server = {"mode": "server", "base_url": f"http://127.0.0.1:{free_port()}", "retries": 1, "engine_args": {}}
    ranks = run_two_ranks("failure", tmp_path, vllm=server)
    assert ranks[0]["error"].startswith("ServerError: http://127.0.0.1:")
    assert "cannot be reached" in ranks[0]["error"]
    assert ranks[1]["error"].startswith("PeerError: rank 0 failed, so rank 1 stops too. ServerError: http://127.0.0.1:")


@pytest.mark.parametrize(
    ("bad_sample", "message"), [("missing", "prompt_ids"), ("long", "a prompt of 1000 tokens and may get 12 more")]
)
def test_neighbours_of_one_engine_fail_together(tmp_path, bad_sample, message):
    vllm = {"engine_args": {"kv_cache_memory_bytes": 64 << 20}, "tensor_parallel_size": 2}
    ranks = run_two_ranks("failure", tmp_path, bad_sample=bad_sample, vllm=vllm)
    assert message in ranks[1]["error"]
    failed = f"PeerError: rank 1 failed, so rank 0 stops too. {ranks[1]['error']}"
    said = ranks[0]["error"].splitlines()
    assert (said[0], said[-1]) == (failed, "in step 1 on rank 1")
