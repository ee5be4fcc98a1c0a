"""Rollouts that are under way, against a server on a socket that sends each token when the test says so."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from rollout_sft.config.decoding import Decoding
from rollout_sft.config.vllm import VLLMConfig
from rollout_sft.rollouts.base import Rollout, RolloutRequest, StreamingBackend
from rollout_sft.rollouts.check_answers import AnswerError
from rollout_sft.rollouts.live_weights import LiveWeights
from rollout_sft.rollouts.vllm import share
from rollout_sft.rollouts.vllm.http import ServerError
from rollout_sft.rollouts.vllm.served import ServedBackend
from rollout_sft.rollouts.vllm.server import ServerEngine
from tests.hostile_server import HostileServer, answer

END, LONGEST = 2, 20


class TokenServer(HostileServer):
    """
    Answers a prompt [length, name] with `length` tokens, the prompt's name each, and an end token.

    `gates[name]` is (tokens, event): behind so many tokens the response waits for the event. `cuts[name]` is how often
    the connection breaks behind the first token. Attributes: `version`, of the weights; `asked_for`, names in order;
    `left`, names whose client went away; `most`, completions at a time.
    """

    def __init__(self):
        super().__init__(self._act)
        self.version, self.gates, self.cuts = "default", {}, {}
        self.asked_for, self.left, self._open, self.most = [], [], 0, 0

    def _act(self, path, body):
        if path == "/v1/completions":
            yield from self._complete(json.loads(body))
        else:
            models = {"data": [{"id": "m", "max_model_len": 64}]}
            version = {"weight_version": self.version}
            yield answer({"/v1/models": models, "/get_world_size": {"world_size": 1}, "/weight_info": version}[path])

    def _complete(self, body):
        (length, name), whole = body["prompt"], False
        self.asked_for.append(name)
        self._open += 1
        self.most = max(self.most, self._open)
        after, gate = self.gates.get(name, (0, None))
        try:
            yield b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
            tokens = ([name] * length + [END])[: body["max_tokens"]]
            for n, token in enumerate(tokens):
                if gate is not None and n == after:
                    while not gate.wait(0.01):
                        yield b": still here\n"  # so that it notices a client that goes away
                last = n + 1 == len(tokens)
                choice = {"token_ids": [token], "finish_reason": "stop" if last else None}
                choice["prompt_token_ids"] = body["prompt"] if n == 0 else None
                yield b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
                if n == 0 and self.cuts.get(name, 0):
                    self.cuts[name] -= 1
                    whole = True
                    yield None
            whole = True
            yield b"data: [DONE]\n\n"
            yield None
        finally:
            self._open -= 1
            if not whole:
                self.left.append(name)


class Transfer:
    """Hands over a version instead of weights."""

    def __init__(self, *servers):
        self._servers, self.again = {server.url: server for server in servers}, 0

    def send(self, weights, marker, servers, deadline):
        for server in servers:
            self._servers[server.url].version = marker
        return {}

    def resend(self, weights, marker, server, deadline):
        self.again += 1
        self._servers[server.url].version = marker

    def close(self):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(share, "pause", lambda attempts: 0.01)
    with TokenServer() as server:
        yield server


@pytest.fixture
def make_backend():
    engines = []

    def make(*servers, timeout=20.0, retries=1, concurrency=64):
        urls = [server.url for server in servers]
        config = VLLMConfig(mode="server", base_url=urls, timeout=timeout, retries=retries, concurrency=concurrency)
        engine = ServerEngine(config, Transfer(*servers), show_progress=False)
        engines.append(engine)
        weights = LiveWeights(lambda: None)
        backend = ServedBackend(engine, weights, Decoding(max_new_tokens=LONGEST), eos_token_ids=[END])
        backend.sync()
        return backend

    yield make
    for engine in engines:
        engine.close()


def asking(*lengths):
    return [RolloutRequest(prompt_ids=[length, 10 + i], seed=i) for i, length in enumerate(lengths)]


def answered(i, length):
    ids = [10 + i] * min(length, LONGEST)
    return Rollout(response_ids=ids, truncated=length >= LONGEST)


def share_threads():
    return [thread for thread in threading.enumerate() if thread.name == "rollout-share"]


def until(reached):
    """Waits until another thread has come so far."""
    end = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_backend_with_servers_streams(server, make_backend):
    assert isinstance(make_backend(server), StreamingBackend)


def test_waves_hold_what_ended_within_their_tokens_whatever_arrives_first(server, make_backend):
    lengths = [1, 5, 19, 25, 4, 7]
    server.gates = {name: (after, threading.Event()) for name, after in ((12, 3), (10, 1), (14, 4))}
    with closing(make_backend(server).begin(asking(*lengths))) as rollouts, ThreadPoolExecutor(1) as pool:
        first = pool.submit(rollouts.wait, 4)
        time.sleep(0.3)
        assert not first.done(), "one response has 3 tokens and another may still end within 4"
        server.gates[12][1].set()
        time.sleep(0.1)
        assert not first.done(), "the end of two responses has not arrived"
        server.gates[10][1].set()
        time.sleep(0.1)
        assert not first.done(), "a response with 4 tokens may end there"
        server.gates[14][1].set()
        assert first.result(30) == {0: answered(0, 1), 4: answered(4, 4)}
        assert rollouts.wait(4) == {}
        assert list(rollouts.wait(7).items()) == [(1, answered(1, 5)), (5, answered(5, 7))]
        assert rollouts.wait(None) == {2: answered(2, 19), 3: answered(3, 25)}
        assert rollouts.wait(None) == {}


def test_all_waves_together_are_what_generate_answers(server, make_backend):
    backend, asked = make_backend(server), asking(*range(0, 24, 2))
    whole = backend.generate(asked)
    assert whole == [answered(i, length) for i, length in enumerate(range(0, 24, 2))]
    counters = dict(backend.counters)
    with closing(backend.begin(asked)) as rollouts:
        waves = [rollouts.wait(tokens) for tokens in (3, 3, 11, None)]
    assert [i for wave in waves for i in wave] == list(range(12))
    assert [rollout for wave in waves for rollout in wave.values()] == whole
    assert backend.counters["rollout/prefill_tokens"] == counters["rollout/prefill_tokens"]
    assert backend.counters["rollout/new_tokens_per_s"][0] == counters["rollout/new_tokens_per_s"][0]


def test_requests_of_two_servers_beyond_their_concurrency_all_pass(server, make_backend):
    with TokenServer() as other, ThreadPoolExecutor(1) as pool:
        backend, gate = make_backend(server, other, concurrency=3), threading.Event()
        server.gates = other.gates = {name: (5, gate) for name in range(10, 30)}
        with closing(backend.begin(asking(*[9, 1] * 10))) as rollouts:
            first = pool.submit(rollouts.wait, 1)
            until(lambda: min(server.most, other.most) == 3)
            assert not first.done(), "the last of the short responses wait for the long ones"
            gate.set()
            assert list(first.result(30)) == list(range(1, 20, 2))
            assert list(rollouts.wait(None)) == list(range(0, 20, 2))
        assert [server.most, other.most] == [3, 3]
        assert sorted(server.asked_for) == list(range(10, 20))


def test_hundreds_of_requests_come_back_in_their_order(server, make_backend):
    asked = asking(*[i % 5 for i in range(300)])
    assert make_backend(server).generate(asked) == [answered(i, i % 5) for i in range(300)]


def test_a_request_that_breaks_is_asked_again_and_the_others_go_on(server, make_backend):
    backend = make_backend(server)
    server.cuts = {11: 1}
    assert backend.generate(asking(3, 4, 5)) == [answered(0, 3), answered(1, 4), answered(2, 5)]
    assert sorted(server.asked_for) == [10, 11, 11, 12]
    assert backend.counters["rollout/engine_retries"] == (1.0, 1.0)
    server.cuts = {11: 2}
    with pytest.raises(ServerError, match=r"/v1/completions .*broke off.* Asked 2 times .*retries: 1"):
        backend.generate(asking(3, 4, 5))
    assert not share_threads()


def test_weights_that_change_in_a_wave_cost_its_responses_alone(server, make_backend):
    backend = make_backend(server)
    server.gates[12] = (6, threading.Event())
    with closing(backend.begin(asking(1, 4, 9))) as rollouts:
        assert list(rollouts.wait(2)) == [0]
        server.version = "intruder"
        server.gates[12][1].set()
        assert rollouts.wait(None) == {1: answered(1, 4), 2: answered(2, 9)}
    assert sorted(server.asked_for) == [10, 11, 11, 12, 12]
    assert server.version != "intruder"


def test_a_failure_that_shows_other_weights_forgets_all_that_is_unreturned(server, make_backend):
    """A server that restarts: the broken request finds it out, and the ended ones may be from any weights."""
    backend = make_backend(server)
    server.gates, server.cuts = {name: (0, threading.Event()) for name in (12, 13)}, {12: 1}
    with closing(backend.begin(asking(1, 4, 9, 12))) as rollouts:
        until(lambda: len(server.asked_for) == 4)
        server.version = "default"
        server.gates[12][1].set()
        until(lambda: len(server.asked_for) == 8 and 13 in server.left)
        server.gates[13][1].set()
        assert list(rollouts.wait(None)) == [0, 1, 2, 3]
    assert sorted(server.asked_for) == [10, 10, 11, 11, 12, 12, 13, 13]


def test_tokens_that_arrive_after_a_restart_count_for_nothing(server, make_backend):
    server.gates[10] = (0, threading.Event())
    with closing(make_backend(server).begin(asking(9))) as rollouts:
        (response,) = rollouts._responses
        arrived = rollouts.follow(response)
        arrived([10, 10])
        assert response.has_passed(1)
        rollouts.forgotten([response])
        arrived([10, 10, 10])
        assert not response.has_passed(1)


def test_a_rule_ends_a_request_and_the_others_go_on(server, make_backend):
    backend = make_backend(server)
    server.gates[11] = (5, threading.Event())  # never opens

    def watch():
        return lambda ids: 3 if ids[:3] == [11, 11, 11] else None

    def finish(i, got):
        return Rollout(response_ids=got.token_ids[:3], truncated=True) if i == 1 else backend._cut(i, got)

    with closing(backend._engine.begin(asking(2, 19, 7), backend._knobs, finish, watch=watch)) as rollouts:
        assert list(rollouts.wait(3)) == [0, 1]
        assert rollouts.wait(None) == {2: answered(2, 7)}
    until(lambda: server.left == [11])


def test_a_rule_that_fails_stops_everything_with_its_own_error(server, make_backend):
    server.gates[10] = (5, threading.Event())
    backend = make_backend(server)

    def watch():
        def fail(ids):
            raise KeyError("a builder's mistake")

        return fail

    rollouts = backend._engine.begin(asking(9, 9), backend._knobs, backend._cut, watch=watch)
    with pytest.raises(KeyError, match="a builder's mistake"):
        rollouts.wait(None)
    assert not share_threads()


def test_an_answer_that_stops_early_is_an_error_of_its_request(server, make_backend, monkeypatch):
    backend = make_backend(server)
    monkeypatch.setattr(backend, "_max_new_tokens", LONGEST + 1)
    with pytest.raises(AnswerError, match=r"request 1, .* stops after 20 of 21 tokens"):
        backend.generate(asking(3, LONGEST))


def test_closing_ends_the_requests_and_leaves_no_thread(server, make_backend):
    server.gates.update({name: (2, threading.Event()) for name in (10, 11)})
    rollouts = make_backend(server).begin(asking(9, 9, 1))
    assert list(rollouts.wait(1)) == [2]
    rollouts.close()
    rollouts.close()
    assert not share_threads()
    until(lambda: sorted(server.left) == [10, 11])


def test_a_server_that_hangs_is_an_error_and_time_between_waits_is_free(server, make_backend):
    server.gates[11] = (2, threading.Event())
    with closing(make_backend(server, timeout=1.5).begin(asking(1, 9))) as rollouts:
        time.sleep(1.6)
        assert list(rollouts.wait(1)) == [0]
        time.sleep(1.6)
        start = time.monotonic()
        with pytest.raises(ServerError, match=r"/v1/completions did not answer in time\. Gave up after 1\.5 s"):
            rollouts.wait(None)
        assert 0.1 < time.monotonic() - start < 1.8
    assert not share_threads()


def test_no_requests_are_no_work(server, make_backend):
    with closing(make_backend(server).begin([])) as rollouts:
        assert rollouts.wait(5) == {}
        assert rollouts.wait(None) == {}
    assert not share_threads()


def test_one_of_two_servers_that_dies_is_an_error_within_the_retries(server, make_backend):
    with TokenServer() as other:
        backend = make_backend(server, other)
        other.gates = {name: (2, threading.Event()) for name in range(10, 14)}
        server.gates = {name: (5, threading.Event()) for name in range(10, 14)}
        rollouts = backend.begin(asking(1, 9, 1, 9))
        assert list(rollouts.wait(1)) == [0, 2]
    with pytest.raises(ServerError, match=f"{other.url}/.* (cannot be reached|broke off).* Asked 2 times"):
        rollouts.wait(None)
    assert not share_threads()
