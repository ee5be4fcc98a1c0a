"""Real servers, real failures: the right tokens, a clear error or a recovery, and never a stale rollout."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
import requests as http

from rollout_sft.config.decoding import Decoding
from rollout_sft.rollouts.endings import Endings
from rollout_sft.rollouts.vllm.backend import VLLMBackend
from rollout_sft.rollouts.vllm.colocated import ColocatedEngine
from rollout_sft.rollouts.vllm.http import Deadline, ServerError
from rollout_sft.rollouts.vllm.routes import Server
from rollout_sft.rollouts.vllm.server import split_in_proportion
from tests.rollout_sft.rollouts.test_endings import Builder
from tests.rollout_sft.rollouts.test_hf_endings import Rare
from tests.vllm.conftest import (
    EOS,
    LONG,
    LONGEST,
    SHORT,
    by_hf,
    colocate_config,
    compare_ends,
    compare_every_window,
    ends_that_only_the_model_names,
    make_trainer,
    requests,
)
from tests.vllm.servers import ROOT, free_port

TRANSFERS = pytest.mark.parametrize("transfer", ["folder", "gloo"])


@pytest.fixture(params=["tied", "untied"])
def served(request, servers):
    return servers[request.param].wait(), request.param == "tied"


@TRANSFERS
def test_greedy_equals_hugging_face_before_and_after_every_sync(served, trained, transfer):
    server, tied = served
    run = trained(tied=tied)
    backend = run.backend(server, transfer=transfer)
    backend.sync()
    assert backend.generate(requests()) == by_hf(run.model)
    for _ in range(3):
        before = by_hf(run.model)
        run.live.change()
        expected = by_hf(run.model)
        assert all(a != b for a, b in zip(before, expected, strict=True)), "the weights hardly changed"
        backend.sync()
        assert backend.generate(requests()) == expected
        assert backend.generate(requests()) == expected, "the second time from the prefix cache"


def test_every_end_that_only_the_generation_config_names_ends_a_response(servers, trained):
    run, server = trained(), servers["tied"].wait()

    def backend(some):
        made = run.backend(server, ends=some)
        made.sync()
        return made

    compare_ends(backend, run.model, ends_that_only_the_model_names(run.model))


@pytest.mark.parametrize(("builder", "temperature"), [(Rare(), 1.0), (Builder(), 0.0)])
def test_responses_end_early_as_with_hugging_face(servers, trained, builder, temperature):
    run, knobs = trained(), {"max_new_tokens": 220, "temperature": temperature}
    endings = Endings(builder, looping=True)
    backend = run.backend(servers["tied"].wait(), servers["other tokenizer"].wait(), endings=endings, **knobs)
    ended = 0
    for _ in range(2):  # the second time with other weights: nothing of the aborted requests is left in the caches
        backend.sync()
        answers = backend.generate(requests())
        assert answers == [endings.cut(rollout) for rollout in by_hf(run.model, **knobs)]
        ended += sum(rollout.ended for rollout in answers)
        assert backend.counters["rollout/new_tokens_per_s"][0] < 5 * 220
        run.live.change()
    assert ended, "nothing ended early: the test would show nothing"


@pytest.mark.parametrize(
    ("left_out", "stale"),
    [("/reset_prefix_cache", "long prompts"), ("rollout_repack_head", "all"), ("reload_weights", "all")],
)
def test_a_sync_that_leaves_something_out_would_be_stale(servers, trained, monkeypatch, left_out, stale):
    run = trained()
    backend = run.backend(servers["tied"].wait())
    backend.sync()
    backend.generate(requests())
    call = Server.call_workers
    if left_out == "/reset_prefix_cache":
        monkeypatch.setattr(Server, "reset_prefix_cache", lambda *_: True)
    monkeypatch.setattr(Server, "call_workers", lambda s, method, *a: method == left_out or call(s, method, *a))
    run.live.change()
    backend.sync()
    answers, expected = backend.generate(requests()), by_hf(run.model)
    differ = [a != b for a, b in zip(answers, expected, strict=True)]
    assert differ == [stale == "all" or len(r.prompt_ids) > 300 for r in requests()]


def test_several_servers_answer_like_one_and_like_a_colocated_engine(servers, trained):
    """The second server's tokenizer is another one, which ids in and out never meet."""
    run = trained()
    knobs = {"temperature": 1.0, "top_p": 0.95}
    both = run.backend(servers["tied"].wait(), servers["other tokenizer"].wait(), **knobs)
    swapped = run.backend(servers["other tokenizer"], servers["tied"], **knobs)
    engine = ColocatedEngine(colocate_config(), longest=LONGEST, dtype="float32")
    colocated = VLLMBackend(engine, run.live.weights, Decoding(max_new_tokens=24, **knobs), eos_token_ids=[EOS])
    colocated.sync()
    expected = colocated.generate(requests())
    engine.close()
    for backend in (both, swapped):
        backend.sync()
        assert backend.generate(requests()) == expected
        assert backend.generate(requests()[::-1])[::-1] == expected
        assert [backend.generate([request])[0] for request in requests()] == expected


@TRANSFERS
def test_a_training_with_servers_rolls_out_with_the_weights_of_each_step(servers, tmp_path, transfer):
    urls = [servers["tied"].wait().url, servers["other tokenizer"].wait().url]
    vllm = {"mode": "server", "base_url": urls, "engine_args": {}, "weight_transfer": transfer}
    trainer = make_trainer(tmp_path, vllm=vllm)
    compared = compare_every_window(trainer)
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    assert compared == [True] * 3
    if transfer == "folder":
        kept = sorted(path.name for path in (tmp_path / "rollout_weights").iterdir())
        assert len(kept) == 1, "weights that are not used any more were left"
        assert kept[0].endswith("-3")
    else:
        assert not (tmp_path / "rollout_weights").exists()
    for line in trainer.state.log_history:
        if "loss" in line:
            assert line["time/weight_sync_s"] > 0
            assert line["rollout/prefill_tokens"] > 100
    trainer.generation.close()


def test_a_server_restarted_within_a_window_gets_the_weights_again(servers, trained):
    run, victim = trained(), servers["other tokenizer"].wait()
    backend = run.backend(servers["tied"].wait(), victim, timeout=400.0, retries=60, max_new_tokens=600)
    backend.sync()
    run.live.change()
    backend.sync()
    asked = requests([*SHORT, *[p for p in LONG for _ in range(24)]])
    expected = by_hf(run.model, asked, max_new_tokens=600)
    shortest, *_, longest = sorted(len(rollout.response_ids) for rollout in expected)
    assert shortest < longest == 600, "there is nothing to hand out before the server is killed"
    with closing(backend.begin(asked)) as rollouts:
        outcome = rollouts.wait(shortest)
        assert 0 < len(outcome) < len(asked)
        victim.kill()
        victim.start()
        outcome.update(rollouts.wait(None))
    assert [outcome[i] for i in range(len(asked))] == expected
    assert backend.counters["rollout/engine_retries"][0] >= 1
    assert http.get(f"{victim.url}/weight_info").json()["weight_version"].endswith("-1")


def test_a_restarted_server_joins_a_new_stream_at_the_next_step(servers, trained):
    """Until then it is refused: one rank alone cannot gather weights to send them again."""
    run, victim = trained(), servers["other tokenizer"].wait()
    backend = run.backend(servers["tied"].wait(), victim, transfer="gloo", timeout=400.0, retries=60)
    backend.sync()
    assert backend.generate(requests()) == by_hf(run.model)
    victim.kill()
    victim.start().wait()
    with pytest.raises(ServerError, match=r"lost the weights of this step, .*or set .*weight_transfer: folder"):
        backend.generate(requests())
    run.live.change()
    backend.sync()
    assert backend.generate(requests()) == by_hf(run.model)


def test_a_server_killed_while_weights_are_sent_gets_them_when_it_is_back(servers, trained, monkeypatch):
    run, victim = trained(), servers["other tokenizer"].wait()
    backend = run.backend(servers["tied"].wait(), victim, transfer="gloo", timeout=400.0, retries=60)
    backend.sync()
    tensors, killed = run.live.weights.tensors, []

    def kill_in_the_middle():
        for i, item in enumerate(tensors()):
            if i == 5 and not killed:
                killed.append(victim.url)
                victim.kill()
                victim.start()
            yield item

    monkeypatch.setattr(run.live.weights, "tensors", kill_in_the_middle)
    monkeypatch.setattr("rollout_sft.rollouts.vllm.weight_stream._BUCKET_BYTES", 1)
    run.live.change()
    backend.sync()
    assert killed
    assert backend.generate(requests()) == by_hf(run.model)


def test_a_stream_that_loses_a_tensor_is_refused(servers, trained, monkeypatch):
    """The receiver reports one less than was sent, as it would if anything on the way dropped one."""
    run = trained()
    backend = run.backend(servers["tied"].wait(), transfer="gloo", retries=1)
    receive = Server.receive
    monkeypatch.setattr(Server, "receive", lambda *a: [count - 1 for count in receive(*a)])
    with pytest.raises(ServerError, match=r"received \[23\] tensors of 24\. Asked 2 times"):
        backend.sync()


def test_a_server_with_old_weights_between_two_windows_gets_them_again(servers, trained):
    run, server = trained(), servers["tied"].wait()
    backend = run.backend(server)
    backend.sync()
    run.live.change()
    backend.sync()
    expected = by_hf(run.model)
    other = trained(seed=9).backend(server)
    other.sync()  # another run's weights, as after a restart from another folder
    assert other.generate(requests()) != expected
    assert backend.generate(requests()) == expected


def test_answers_from_weights_that_changed_meanwhile_are_refused(servers, trained, monkeypatch):
    run, server = trained(), servers["tied"].wait()
    backend = run.backend(server, retries=1)
    backend.sync()
    complete = Server.complete

    def intrude(self, *args):
        started = complete(self, *args)
        self.set_weight_version("intruder", Deadline(10))
        return started

    monkeypatch.setattr(Server, "complete", intrude)
    with pytest.raises(ServerError, match=r"changed its weights while it .*: they are 'intruder' now .* Asked 2 times"):
        backend.generate(requests())


def test_another_model_is_refused_before_it_gets_weights(servers, trained):
    server = servers["tied"].wait()
    with pytest.raises(ServerError, match=r"serves another model .*: intermediate_size is 96 there and 64 here"):
        trained(intermediate_size=64).backend(server).sync()
    with pytest.raises(ServerError, match=r"serves another model .*: tie_word_embeddings is True there and False here"):
        trained(tied=False).backend(server).sync()


def test_a_closed_port_is_an_error_within_the_retries(trained):
    class Nowhere:
        url = f"http://127.0.0.1:{free_port()}"

    start = time.monotonic()
    with pytest.raises(ServerError, match=r"cannot be reached .*: the server is down, or has another .* Asked 2 times"):
        trained().backend(Nowhere, retries=1).sync()
    assert time.monotonic() - start < 5


def test_a_server_that_hangs_is_an_error_at_the_timeout_and_recovers(servers, trained):
    run, server = trained(), servers["tied"].wait()
    backend = run.backend(server, timeout=3.0)
    backend.sync()
    server.signal(signal.SIGSTOP)
    try:
        start = time.monotonic()
        with pytest.raises(ServerError, match=r"did not answer in time\. Gave up after 3 s .*vllm\.timeout"):
            backend.generate(requests())
        assert time.monotonic() - start < 6
    finally:
        server.signal(signal.SIGCONT)
    backend = run.backend(server)
    backend.sync()
    assert backend.generate(requests()) == by_hf(run.model)


def test_what_vllm_refuses_is_passed_on_at_once(servers, trained):
    run = trained()
    backend = run.backend(servers["tied"].wait())
    backend.sync()
    with pytest.raises(ServerError, match=re.escape("/v1/completions answered 400") + ".*Token id 777 is out of"):
        backend.generate(requests([[5, 777]]))


@pytest.mark.parametrize(
    ("count", "sizes", "first", "expected"),
    [
        (7, [1, 1, 1], 0, [3, 2, 2]),
        (7, [1, 1, 1], 2, [2, 2, 3]),
        (9, [2, 1], 0, [6, 3]),
        (1, [1, 1], 1, [0, 1]),
        (0, [1, 1], 0, [0, 0]),
        (10, [4, 1], 1, [8, 2]),
    ],
)
def test_requests_are_split_in_proportion_and_in_order(count, sizes, first, expected):
    bounds = split_in_proportion(count, sizes, first=first)
    assert [end - start for start, end in bounds] == expected
    assert [i for start, end in bounds for i in range(start, end)] == list(range(count))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["terminated", "killed"])
def test_serve_starts_the_quickstart_s_server_and_removes_its_folder(tmp_path, how):
    """`python -m rollout_sft.serve`, as a user runs it: no option but the configuration and a port."""
    port = free_port()
    command = [sys.executable, "-m", "rollout_sft.serve", "--config", "configs/quickstart-vllm-server.yaml"]
    log, place = tmp_path / "log", Path(tempfile.mkdtemp(prefix="serve-"))  # short: vLLM makes sockets there
    environment = {**os.environ, "TMPDIR": str(place)}
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--port", str(port)], cwd=ROOT, stdout=out, stderr=out, env=environment, start_new_session=True
        )
    try:
        server = Server(f"http://127.0.0.1:{port}", concurrency=1)
        deadline = Deadline(240)
        while True:
            try:
                server.read_limits(deadline)
                break
            except ServerError:
                assert process.poll() is None, log.read_text()[-3000:]
                deadline.sleep(0.5, log.read_text()[-3000:])
        assert server.devices == 1
        assert server.weight_version(deadline) == "default"
        assert [path.name.startswith("rollout_sft-serve-") for path in place.glob("rollout_sft*")] == [True]
    finally:
        process.send_signal(how)
        process.wait(timeout=30)
        with suppress(ProcessLookupError):  # vLLM's engine, a process of its own, outlives a server that is killed
            os.killpg(process.pid, signal.SIGKILL)
    while list(place.glob("rollout_sft*")):
        deadline.sleep(0.1, "the folder of the model is still there.")
    shutil.rmtree(place)
