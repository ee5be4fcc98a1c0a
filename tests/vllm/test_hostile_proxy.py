"""A real vLLM server behind a proxy that drips, cuts, floods, redirects or lies: never a wait past `timeout`, never a
wrong rollout, and once the proxy is honest the right ones."""

import http.client
import json
import subprocess
import sys
import threading
import time

import pytest

from rollout_sft.rollouts.check_answers import AnswerError, AnswerLimits, checked
from rollout_sft.rollouts.vllm import weight_transfer
from rollout_sft.rollouts.vllm.http import ServerError
from rollout_sft.rollouts.vllm.routes import Server
from rollout_sft.rollouts.vllm.weight_stream import WeightStream
from tests.hostile_server import HostileServer, answer, events
from tests.rollout_sft.rollouts.vllm.test_weight_stream import STRANGER
from tests.vllm.conftest import EOS, TOKENIZER, by_hf, requests

LIMITS = AnswerLimits(vocab_size=len(TOKENIZER), max_new_tokens=24, end_ids=frozenset([EOS]))
SECONDS = 5.0


class HostileProxy(HostileServer):
    """Passes requests on to a server; `mangle(path, reply)` gives the pieces of what comes back."""

    def __init__(self, behind):
        super().__init__(self._pass_on)
        self._port = behind.port
        self.mangle = lambda _, reply: [answer(reply)]

    def _pass_on(self, path, body):
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        connection.request("POST" if body else "GET", path, body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        data = reply.read()
        connection.close()
        return self.mangle(path, data) if reply.status == 200 else [answer(data, status=reply.status)]


@pytest.fixture
def proxy(servers):
    with HostileProxy(servers["tied"].wait()) as proxy:
        yield proxy


def only(route, pieces):
    """Mangles one route."""
    return lambda path, reply: pieces(reply) if path == route else [answer(reply)]


def drip(reply):
    for byte in answer(reply):
        yield bytes([byte])
        yield 0.3


def flood(_):
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    while True:
        yield b"100000\r\n" + b" " * (1 << 20) + b"\r\n"


ATTACKS = {
    "drip": (drip, r"did not answer in time\. Gave up after 5 s"),
    "flood": (flood, "answered 200 with more than the"),
    "redirect": (lambda _: [answer(b"", status=307, headers=["Location: {}/x"])], "answered 307, a redirect"),
    "cut": (lambda reply: [answer(reply)[:-3], None], r"broke off.* Asked 2 times"),
    "noise": (lambda _: [answer(b"\x1b[31m<html>")], "answered 200 with something else"),
}
ROUTES = ["/v1/completions", "/weight_info", "/collective_rpc", "/update_weight_version", "/v1/models"]


def attempt(backend):
    """What reaches the trainer: checked rollouts, or an error."""
    backend.sync()
    return checked(backend.generate(requests()), requests(), LIMITS)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_ends_in_time_with_a_clear_error(proxy, trained, attack, route):
    run = trained()
    backend = run.backend(proxy, timeout=SECONDS, retries=1)
    pieces, message = ATTACKS[attack]
    proxy.mangle = only(route, pieces)
    start = time.monotonic()
    with pytest.raises(ServerError, match=message) as caught:
        attempt(backend)
    assert time.monotonic() - start < 2 * SECONDS + 2, "a sync and the rollouts have a timeout each"
    assert f"{proxy.url}{route}" in str(caught.value)
    assert str(caught.value).isprintable()


def test_after_every_attack_an_honest_proxy_gives_the_right_rollouts(proxy, trained):
    run = trained()
    for pieces, _ in ATTACKS.values():
        backend = run.backend(proxy, timeout=SECONDS, retries=0)
        proxy.mangle = only("/v1/completions", pieces)
        with pytest.raises(ServerError):
            attempt(backend)
    proxy.mangle = lambda _, reply: [answer(reply)]
    run.live.change()
    assert attempt(run.backend(proxy)) == by_hf(run.model)


def test_replies_that_are_cut_once_cost_a_retry_and_nothing_else(proxy, trained):
    run, cut = trained(), set()

    def once(path, reply):
        if path in cut:
            return [answer(reply)]
        cut.add(path)
        return [answer(reply)[:-3], None]

    proxy.mangle = once
    backend = run.backend(proxy, retries=10)
    assert attempt(backend) == by_hf(run.model)
    assert len(cut) >= 6
    assert backend.counters["rollout/engine_retries"][0] >= 1


def in_one_event(reply):
    """The events of a completion as one that holds all tokens."""
    bodies = [json.loads(line.removeprefix(b"data: ")) for line in reply.split(b"\n\n")[:-2]]
    choices = [body["choices"][0] for body in bodies]
    token_ids = [token for choice in choices for token in choice["token_ids"]]
    whole = {**choices[0], "token_ids": token_ids, "finish_reason": choices[-1]["finish_reason"]}
    return {**bodies[0], "choices": [whole]}


def choice_of(change):
    """A lie in the first choice of every completion."""

    def lie(reply):
        body = in_one_event(reply)
        change(body["choices"][0])
        return [events(body)]

    return lie


def put(n, value):
    def change(choice):
        choice["token_ids"][n] = value

    return choice_of(change)


LIES = {
    "negative": (put(0, -5), "holds the token -5"),
    "beyond 64 bits": (put(0, 2**70), "holds the token 1180591620717411303424"),
    "beyond the vocabulary": (put(0, len(TOKENIZER)), "is not in the model's vocabulary"),
    "text": (put(0, "7"), "token_ids: 0: Input should be a valid integer"),
    "fraction": (put(0, 7.9), "token_ids: 0: Input should be a valid integer"),
    "true": (put(0, True), "token_ids: 0: Input should be a valid integer"),
    "early end": (put(0, EOS), r"holds the end token|stops after"),
    "one more": (choice_of(lambda c: c.update(token_ids=[5] * 25)), "the response has 25 tokens"),
    "one less": (choice_of(lambda c: c.update(token_ids=[5] * 23)), "stops after 23 of 24 tokens without an end token"),
    "none": (choice_of(lambda c: c.update(token_ids=[])), "stops after 0 of 24 tokens without an end token"),
    "no ids": (choice_of(lambda c: c.update(token_ids=None)), r"token_ids: Input should be a valid array.* vLLM 0\.30"),
    "other prompt": (
        choice_of(lambda c: c["prompt_token_ids"].__setitem__(0, 8)),
        "read another prompt than it was given",
    ),
    "short prompt": (choice_of(lambda c: c["prompt_token_ids"].pop()), "read another prompt than it was given"),
    "no choice": (
        lambda reply: [events({**in_one_event(reply), "choices": []})],
        "choices: List should have at least 1",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_the_ids_is_never_a_rollout(proxy, trained, lie):
    run = trained()
    backend = run.backend(proxy, timeout=60.0, retries=1)
    pieces, message = LIES[lie]
    proxy.mangle = only("/v1/completions", pieces)
    with pytest.raises((ServerError, AnswerError), match=message) as caught:
        attempt(backend)
    assert proxy.url in str(caught.value)


def test_an_answer_to_another_request_is_never_a_rollout(proxy, trained):
    """Replies swapped between two requests that are under way at once."""
    run, held = trained(), []

    def swap(reply):
        held.append(reply)
        while len(held) < 5:
            time.sleep(0.01)
        return [answer(next(other for other in held if other != reply))]

    proxy.mangle = only("/v1/completions", swap)
    with pytest.raises(AnswerError, match="the response would belong to another sample"):
        attempt(run.backend(proxy, timeout=60.0, retries=0))


def test_a_prompt_that_was_changed_on_the_way_is_refused(proxy, trained):
    """The server reads, and reports, another prompt."""
    pass_on = proxy.act

    def change(path, body):
        if path == "/v1/completions":
            sent = json.loads(body)
            body = json.dumps({**sent, "prompt": [*sent["prompt"][:1], 8, *sent["prompt"][2:]]}).encode()
        return pass_on(path, body)

    proxy.act = change
    with pytest.raises(AnswerError, match=r"request 0, .* read another prompt .* at position 1: given \[6, 7\]"):
        attempt(trained().backend(proxy))


def test_a_stranger_in_the_stream_costs_a_retry_and_gets_nothing(servers, trained, monkeypatch):
    """
    A process that takes the worker's place in the first stream; the weights go to the real worker in the second. The
    real worker joins the first one as soon as the trainer is connected to the stranger, never before.
    """
    stranger = subprocess.Popen(
        [sys.executable, "-c", STRANGER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert stranger.stdout.readline() == "ready\n"
    open_store, stores = weight_transfer.open_store, []

    def open_and_let_in(*args):
        stores.append(open_store(*args))
        if len(stores) == 1:
            stranger.stdin.write(f"zeros {stores[0].port}\n")
            stranger.stdin.flush()
            stores[0].wait(["0/1"])  # the stranger has said where it listens
        return stores[-1]

    prove, join, connected = WeightStream._prove, Server.join_stream, threading.Event()

    def connect_and_prove(*args):
        connected.set()
        return prove(*args)

    def join_later(*args):
        assert connected.wait(60), "the stranger never came"
        return join(*args)

    monkeypatch.setattr(WeightStream, "_prove", connect_and_prove)
    monkeypatch.setattr(Server, "join_stream", join_later)
    monkeypatch.setattr(weight_transfer, "open_store", open_and_let_in)
    monkeypatch.setattr(weight_transfer, "_MEETING_SECONDS", 10.0)
    run = trained()
    backend = run.backend(servers["tied"].wait(), transfer="gloo", timeout=100.0)
    assert attempt(backend) == by_hf(run.model)
    assert len(stores) > 1
    stranger.stdin.close()
    assert stranger.stdout.read() == "refused\n"
