"""Training in waves with a real server: the weights of one wave, and what is left when it dies between two waves."""

import json
import time

import pytest
import torch

from tests.distributed.launch import start_two_ranks
from tests.hybrids import float64_throughout
from tests.processes import wait_for
from tests.vllm.conftest import make_model, make_trainer
from tests.waves import Echo, lines, weights

STEPS = 3


def train(folder, server, waves):
    trainer = make_trainer(
        folder,
        model=make_model().double(),
        vllm={"mode": "server", "base_url": server.url, "engine_args": {}, "timeout": 400.0, "retries": 60},
        per_device_train_batch_size=3,
        gradient_accumulation_steps=4,
        global_max_length=480,
        decoding={"max_new_tokens": 192, "temperature": 1.0},
        learning_rate=1e-4,
        max_steps=STEPS,
        rollout_waves=waves,
        check_isolation=False,
        on_infeasible="extra_steps",
    )
    trainer.window_builder._target_builder = Echo()
    with float64_throughout():
        trainer.train()
    trainer.generation.close()
    return trainer


@pytest.fixture(scope="module")
def one_wave(servers, tmp_path_factory):
    return train(tmp_path_factory.mktemp("one"), servers["tied"].wait(), 1)


def check(trainer, one_wave):
    log = lines(trainer)
    assert [line["rollout/waves"] > 1 for line in log] == [False, True, True]
    assert sum(line["packing/early_packs"] for line in log) > 0, "nothing was trained early"
    assert torch.allclose(weights(trainer.model), weights(one_wave.model), rtol=0, atol=1e-10)
    for mine, theirs in zip(log, lines(one_wave), strict=True):
        assert mine["rollout/prefill_tokens"] == theirs["rollout/prefill_tokens"]
        assert mine["packing/segments"] == theirs["packing/segments"]


def test_four_waves_of_a_server_reach_the_weights_of_one(servers, tmp_path, one_wave):
    check(train(tmp_path, servers["tied"].wait(), 4), one_wave)


@pytest.mark.distributed
def test_a_server_killed_between_two_waves_leaves_the_last_step_to_resume(servers, tmp_path):
    victim = servers["other tokenizer"].wait()
    ranks = start_two_ranks("tests.vllm.waves_worker", tmp_path, str(tmp_path), victim.url)
    try:
        while not all((tmp_path / f"between-waves-{rank}").exists() for rank in range(2)):
            assert all(process.poll() is None for process in ranks), ranks[0].text()[-4000:]
            time.sleep(0.05)
        victim.kill()
        victim.start()
        (tmp_path / "killed").touch()
        victim.wait()
        (tmp_path / "back").touch()
    finally:
        wait_for(ranks, 120)
    assert [process.returncode for process in ranks] == [0, 0], ranks[0].text()[-4000:]
    for rank in range(2):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert found["early"][1] > 0, "nothing was trained early: nothing is shown"
        assert found["error"].startswith(("ServerError", "PeerError"))
        assert f"ServerError: {victim.url}" in found["error"]
        assert (found["trained"], found["left"]) == (1, found["whole"][0]), "the broken window left a trace"
        assert found["resumed"] == found["whole"][1:]
