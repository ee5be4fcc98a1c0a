"""Rollouts of a real server that are handed out while others are generated: the same, whatever happens meanwhile."""

import json
import re
import time
from contextlib import closing
from threading import Event

import pytest
import requests as http

from rollout_sft.rollouts.base import Rollout, RolloutRequest
from rollout_sft.rollouts.vllm.http import ServerError
from tests.hostile_server import answer
from tests.vllm.conftest import EOS, LONG, PAD, SHORT, by_hf, requests
from tests.vllm.test_hostile_proxy import HostileProxy

SAMPLED = {"temperature": 1.0, "top_p": 0.98, "max_new_tokens": 200}


def many(count=24):
    """Prompts whose sampled responses end anywhere from the first token to the limit."""
    return [RolloutRequest(prompt_ids=[*SHORT[i % 3], 5 + i], seed=i) for i in range(count)]


def in_waves(backend, asked, *cuts):
    """The responses of each wave."""
    with closing(backend.begin(asked)) as rollouts:
        return [rollouts.wait(cut) for cut in (*cuts, None)]


def in_order(waves):
    return [rollout for _, rollout in sorted((i, r) for wave in waves for i, r in wave.items())]


def running(server):
    """How many requests the engine works on or has queued."""
    text = http.get(f"{server.url}/metrics", timeout=10).text
    return sum(float(n) for n in re.findall(r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} (\S+)$", text, re.M))


def until_idle(server, seconds=10):
    end = time.monotonic() + seconds
    while running(server):
        assert time.monotonic() < end, "the engine still works on requests that nobody waits for"
        time.sleep(0.05)


def test_waves_are_the_rollouts_of_generate_cut_by_length(servers, trained):
    run = trained()
    both = servers["tied"].wait(), servers["other tokenizer"].wait()
    greedy, sampled = run.backend(*both), run.backend(*both, **SAMPLED)
    greedy.sync()
    sampled.sync()
    assert in_order(in_waves(greedy, requests(), 3, 20)) == by_hf(run.model)
    whole = sampled.generate(many())
    waves = in_waves(sampled, many(), 10, 60)
    assert in_order(waves) == whole
    lengths = [len(rollout.response_ids) for rollout in whole]
    bounds = [(-1, 10), (10, 60), (60, 200)]
    expected = [[i for i, n in enumerate(lengths) if low < n <= high] for low, high in bounds]
    assert [list(wave) for wave in waves] == expected
    assert all(expected), "a wave is empty"


def test_a_wave_is_the_same_when_its_first_responses_arrive_last(servers, trained):
    run, server = trained(), servers["tied"].wait()
    direct = run.backend(server, **SAMPLED)
    direct.sync()
    waves = in_waves(direct, many(), 30)
    late = list(waves[0])[:2]
    with HostileProxy(server) as proxy:
        pass_on = proxy.act

        def delay(path, body):
            if path == "/v1/completions" and json.loads(body)["seed"] in late:
                yield 1.5
            yield from pass_on(path, body)

        proxy.act = delay
        delayed = run.backend(proxy, **SAMPLED)
        delayed.sync()
        assert in_waves(delayed, many(), 30) == waves


def tokens_before_the_end(reply):
    """How many tokens of a stream have arrived before the event that ends the response."""
    choices = [json.loads(data)["choices"] for data in re.findall(rb"data: (\{.*\})", reply)]
    return sum(len(c["token_ids"]) for choice in choices for c in choice if c["finish_reason"] is None)


def test_weights_of_another_run_in_the_middle_cost_what_was_not_handed_out(servers, trained):
    run, server = trained(), servers["tied"].wait()
    direct = run.backend(server, **SAMPLED)
    direct.sync()
    whole = direct.generate(many(12))
    other = trained(seed=9).backend(server, **SAMPLED)
    synced, held = Event(), []

    def hold(path, reply):
        """Keeps what has passed 20 tokens from ending until the server has the other weights."""
        if path != "/v1/completions" or synced.is_set() or tokens_before_the_end(reply) <= 20:
            return [answer(reply)]
        held.append(reply)
        return until_synced(*reply.split(b"data: [DONE]"))

    def until_synced(tokens, rest):
        yield b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + tokens
        synced.wait(60)
        yield from (b"data: [DONE]" + rest, None)

    with HostileProxy(server) as proxy:
        proxy.mangle = hold
        backend = run.backend(proxy, **SAMPLED)
        backend.sync()
        with closing(backend.begin(many(12))) as rollouts:
            first = rollouts.wait(20)
            other.sync()
            synced.set()
            assert in_order([first, rollouts.wait(None)]) == whole
    assert first
    assert held
    assert backend.counters["rollout/engine_retries"][0] == len(held)
    assert other.generate(many(12)) != whole


def test_a_request_that_ends_early_leaves_the_engine_and_the_others_go_on(servers, trained):
    run, server = trained(), servers["tied"].wait()
    backend = run.backend(server, max_new_tokens=900)
    backend.sync()
    endless = {**backend._knobs, "logit_bias": {EOS: -100}}

    def watch():
        return lambda ids: 60 if len(ids) >= 60 else None

    def finish(_, got):
        assert 60 <= len(got.token_ids) < 200, "the request went on"
        return Rollout(response_ids=got.token_ids[:60], truncated=True)

    with closing(backend._engine.begin(requests(SHORT), endless, finish, watch=watch)) as rollouts:
        ended = rollouts.wait(60)
    until_idle(server)
    assert list(ended.values()) == by_hf(run.model, requests(SHORT), max_new_tokens=60, ends=(PAD,))


def test_closing_frees_the_engine_for_the_next_window(servers, trained):
    run, server = trained(), servers["tied"].wait()
    backend = run.backend(server, max_new_tokens=600)
    backend.sync()
    asked = requests([p for p in LONG for _ in range(8)])
    with closing(backend.begin(asked)) as rollouts:
        rollouts.wait(0)
        assert running(server) > 0
    until_idle(server)
    run.live.change()
    backend.sync()
    assert backend.generate(requests()) == by_hf(run.model, max_new_tokens=600)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("silence", r"/v1/completions did not answer in time\. Gave up after 4 s"),
        ("comments", "/v1/completions answered 200 with more than the"),
        ("within an event", r"/v1/completions .*broke off.* Asked 2 times"),
        ("without the last", "/v1/completions ended its answer before the last token. Asked 2 times"),
        ("twice", "/v1/completions answered 200 with something else .* prompt_token_ids: Input should be null"),
        ("error", "/v1/completions answered 500: the engine died Asked 2 times"),
    ],
)
def test_a_stream_that_goes_wrong_in_the_middle_is_a_clear_error(servers, trained, attack, message):
    def mangle(path, reply):
        if path != "/v1/completions":
            return [answer(reply)]
        first, rest = reply.split(b"\n\n", 1)
        started = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + first + b"\n\n"
        failure = b'data: {"error": {"message": "the engine died", "code": 500}}\n\ndata: [DONE]\n\n'
        return {
            "silence": [started, 30.0],
            "comments": [started, *[b": " + b"x" * (1 << 20) + b"\n"] * 3],
            "within an event": [started, rest[:40], None],
            "without the last": [started, b"data: [DONE]\n\n", None],
            "twice": [started, first + b"\n\n", rest, None],
            "error": [started, failure, None],
        }[attack]

    with HostileProxy(servers["tied"].wait()) as proxy:
        backend = trained().backend(proxy, timeout=4.0, retries=1)
        backend.sync()
        proxy.mangle = mangle
        with closing(backend.begin(requests())) as rollouts, pytest.raises(ServerError, match=message) as caught:
            rollouts.wait(None)
        assert f"{proxy.url}/v1/completions" in str(caught.value)
