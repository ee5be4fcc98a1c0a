"""One exchange with a server that does its worst: bounded in time and size, and one kind of error for all of it."""

import gzip
import json
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from rollout_sft.config.vllm import VLLMConfig
from rollout_sft.rollouts.base import RolloutRequest
from rollout_sft.rollouts.vllm.http import AUTHORIZATION, Deadline, ServerError
from rollout_sft.rollouts.vllm.routes import Server
from tests.hostile_server import HostileServer, answer, events

MODELS = {"data": [{"id": "m", "max_model_len": 64}]}
WHOLE = answer({"weight_version": "default"})
REQUEST = RolloutRequest(prompt_ids=[1, 2, 3], seed=5)
KNOBS = {"max_tokens": 4}


def one_byte_each(reply, seconds=0.05):
    for byte in reply:
        yield bytes([byte])
        yield seconds


def chunks():
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    while True:
        yield b"1\r\n \r\n"
        yield 0.05


def interim_replies():
    while True:
        yield b"HTTP/1.1 102 Processing\r\n\r\n"
        yield 0.05


DRIPS = {
    "status line": lambda: one_byte_each(b"HTTP/1.1 " + b"2" * 1000),
    "headers": lambda: one_byte_each(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 1000),
    "body": lambda: one_byte_each(answer({"weight_version": "v" * 1000})),
    "chunks": chunks,
    "interim replies": interim_replies,
    "error": lambda: one_byte_each(answer(b"x" * 1000, status=500)),
    "silence": lambda: [60.0],
}


@pytest.mark.parametrize("drip", DRIPS)
def test_a_server_that_drips_is_left_at_the_timeout(drip):
    with HostileServer(lambda *_: DRIPS[drip]()) as hostile:
        start = time.monotonic()
        with pytest.raises(ServerError, match=r"/weight_info did not answer in time\. Gave up after 0\.6 s .*timeout"):
            Server(hostile.url, concurrency=1).weight_version(Deadline(0.6))
        assert 0.5 < time.monotonic() - start < 1.2


@pytest.mark.parametrize("declared", [True, False], ids=["content-length", "chunked"])
def test_a_flood_is_refused_at_the_size_that_was_asked_for(declared):
    piece = b" " * (1 << 20)

    def flood(*_):
        if declared:
            yield answer(b"", length=300 << 20)
            yield from (piece for _ in range(300))
        else:
            yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            yield from (b"100000\r\n" + piece + b"\r\n" for _ in range(300))

    with HostileServer(flood) as hostile:
        tracemalloc.start()
        with pytest.raises(ServerError, match=r"answered 200 with more than the 1,052,160 bytes that an answer can"):
            Server(hostile.url, concurrency=1).answer(REQUEST, KNOBS, Deadline(20))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 << 20
        assert hostile.sent < 40 << 20, "the rest was taken"


def test_the_longest_honest_completion_is_within_the_limit():
    """Every token as long as the longest of common tokenizers: 128 characters, escaped to 6 bytes each at worst."""
    request = RolloutRequest(prompt_ids=[151_643] * 2000, seed=1)
    text = "\\u200b" * 32 * 1000
    choice = {"prompt_token_ids": request.prompt_ids, "token_ids": [151_643] * 1000, "finish_reason": "length"}
    event = json.dumps({"choices": [choice]})[:-3].encode() + b', "text": "' + text.encode() + b'"}]}'
    with HostileServer(lambda *_: [events(event)]) as hostile:
        got = Server(hostile.url, concurrency=1).answer(request, {"max_tokens": 1000}, Deadline(20))
    assert got.prompt_ids == request.prompt_ids
    assert got.token_ids == [151_643] * 1000


def test_a_compressed_body_is_never_unpacked():
    bomb = gzip.compress(b" " * (200 << 20))
    with HostileServer(lambda *_: [answer(bomb, headers=["Content-Encoding: gzip"])]) as hostile:
        tracemalloc.start()
        with pytest.raises(ServerError, match=r"answered 200 with a body in the encoding 'gzip', which was not asked"):
            Server(hostile.url, concurrency=1).weight_version(Deadline(20))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
        tracemalloc.stop()
    assert "accept-encoding: identity" in hostile.asked[0][0].lower()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status):
    with HostileServer(lambda *_: [answer(MODELS)]) as elsewhere:
        moved = answer(b"", status=status, headers=[f"Location: {elsewhere.url}/v1/completions"])
        with HostileServer(lambda *_: [moved]) as hostile:
            server = Server(hostile.url, concurrency=1)
            with pytest.raises(ServerError, match=f"/v1/completions answered {status}, a redirect, .* not followed"):
                server.answer(REQUEST, KNOBS, Deadline(5))
            with pytest.raises(ServerError, match=f"answered {status}, a redirect"):
                server.weight_version(Deadline(5))
        assert elsewhere.asked == []


@pytest.mark.parametrize(
    "pieces",
    [
        [None],
        [WHOLE[:12], None],
        [WHOLE[:-4], None],
        [b"\x00\x01 no HTTP at all\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nA B\r\n\r\n"],
    ],
    ids=["at once", "in the headers", "in the body", "no HTTP", "bad header"],
)
def test_a_reply_that_is_cut_may_be_asked_for_again(pieces):
    with HostileServer(lambda *_: pieces) as hostile:
        with pytest.raises(ServerError, match=r"/weight_info cannot be reached or broke off \(\w+: ") as caught:
            Server(hostile.url, concurrency=1).weight_version(Deadline(5))
        assert caught.value.again
        hostile.act = lambda *_: [WHOLE]
        assert Server(hostile.url, concurrency=1).weight_version(Deadline(5)) == "default"


ROUTES = {
    "/v1/models": lambda s: s.read_limits(Deadline(5)),
    "/weight_info": lambda s: s.weight_version(Deadline(5)),
    "/update_weight_version": lambda s: s.set_weight_version("v", Deadline(5)),
    "/reset_prefix_cache": lambda s: s.reset_prefix_cache(Deadline(5)),
    "/collective_rpc": lambda s: s.call_workers("reload_weights", {}, Deadline(5)),
    "/collective_rpc configuration": lambda s: s.configuration(Deadline(5)),
    "/collective_rpc receive": lambda s: s.receive(Deadline(5)),
    "/collective_rpc join": lambda s: s.join_stream({}, Deadline(5)),
    "/collective_rpc streams": lambda s: s.open_streams(Deadline(5)),
    "/v1/completions": lambda s: s.answer(REQUEST, KNOBS, Deadline(5)),
}
DEEP = b"[" * 100_000
ANYWHERE = [b"", b"{", b"null", b"[]", b'"text"', b"<html>busy</html>", b"\xff\xfe", b"NaN", DEEP, b"9" * 6000]
IDS = [None, "7", [1, "7"], [7.9], [7.0], [True], [[1]], {"0": 1}, [None], 7, [float("nan")], [{}]]


def completion(ids, prompt=(1, 2, 3)):
    return {"choices": [{"token_ids": ids, "prompt_token_ids": list(prompt), "finish_reason": "length"}]}


WRONG = [(route, body) for route in ROUTES for body in ANYWHERE if body or route != "/v1/completions"]
WRONG += [("/v1/completions", events(body)) for body in ANYWHERE]
WRONG += [("/v1/completions", completion(ids)) for ids in IDS]
WRONG += [("/v1/completions", completion([1], prompt)) for prompt in ("abc", [1.5], [None])]
WRONG += [("/v1/completions", {"choices": choices}) for choices in ([], {}, "a", [1], [None], [{}], [{}, {}], None)]
WRONG += [("/v1/completions", {})]
WRONG += [("/v1/models", {"data": data}) for data in ([], [{}], [{"id": "m"}], [{"id": 3, "max_model_len": 9}], None)]
WRONG += [("/v1/models", {"data": [{"id": "m", "max_model_len": n}]}) for n in ("9", 9.5, True, None, [9])]
WRONG += [("/weight_info", {"weight_version": v}) for v in (None, 3, ["a"])] + [("/weight_info", {})]
WRONG += [("/reset_prefix_cache", {"success": v}) for v in (None, "yes", 1)] + [("/reset_prefix_cache", {})]
WRONG += [(route, {"results": r}) for route in ROUTES if "rpc" in route for r in ([], None, "a", {})]
WRONG += [("/collective_rpc configuration", {"results": [r]}) for r in ("[]", "{", "3", 3, None, '{"a":' * 5000)]
WRONG += [(f"/collective_rpc {r}", {"results": [v]}) for r in ("receive", "join") for v in (-1, "-1", "a", 1.5, None)]
WRONG += [("/collective_rpc streams", {"results": [v]}) for v in (3, None, ["a"])]


@pytest.mark.parametrize(("route", "body"), WRONG)
def test_a_reply_of_the_wrong_shape_is_one_kind_of_error(route, body):
    as_events = route == "/v1/completions" and not isinstance(body, bytes)
    reply = body if isinstance(body, bytes) and b"data:" in body else events(body) if as_events else answer(body)
    with HostileServer(lambda *_: [reply]) as hostile, pytest.raises(ServerError) as caught:
        ROUTES[route](Server(hostile.url, concurrency=1))
    message = str(caught.value)
    assert hostile.url in message
    assert "answered 200 with something else than what was asked for" in message
    assert len(message) < 1000
    assert message.isprintable()
    assert not caught.value.again


@pytest.mark.parametrize("size", [0, -1, 2.5, "2", True, None, 10**9])
def test_a_wrong_number_of_workers_is_refused(size):
    replies = {"/v1/models": MODELS, "/get_world_size": {"world_size": size}}
    with HostileServer(lambda path, _: [answer(replies[path])]) as hostile, pytest.raises(ServerError) as caught:
        Server(hostile.url, concurrency=1).read_limits(Deadline(5))
    assert f"{hostile.url}/get_world_size answered 200 with something else" in str(caught.value)
    assert "world_size: Input should be" in str(caught.value)


@pytest.mark.parametrize("status", [200, 201, 400, 404, 418, 500, 503])
def test_no_control_character_of_a_server_reaches_a_message(status):
    evil = "\x1b[2J\x1b]0;owned\x07\r\n\u202eright to left\u2066 \x9b31m " + "long " * 10_000
    reply = answer(evil.encode(), status=status)
    with HostileServer(lambda *_: [reply]) as hostile, pytest.raises(ServerError) as caught:
        Server(hostile.url, concurrency=1).weight_version(Deadline(5))
    message = str(caught.value)
    assert message.isprintable(), repr(message)
    assert len(message) < 1000
    assert f"{hostile.url}/weight_info answered {status}" in message
    assert "right to left" in message, "the excerpt is missing"
    assert caught.value.again == (status >= 500)


def test_the_authorization_of_the_environment_is_sent_and_never_shown(monkeypatch):
    monkeypatch.setenv(AUTHORIZATION, "Bearer tr0ub4dor")
    with HostileServer(lambda *_: [WHOLE]) as hostile:
        server = Server(hostile.url, concurrency=1)
        server.weight_version(Deadline(5))
        assert "authorization: bearer tr0ub4dor" in hostile.asked[0][0].lower()
        hostile.act = lambda *_: [None]
        with pytest.raises(ServerError) as caught:
            server.weight_version(Deadline(5))
        assert "tr0ub4dor" not in f"{caught.value!r} {caught.value.__cause__!r} {server.__dict__!r}"
    monkeypatch.setenv(AUTHORIZATION, "Bearer tr0ub4dor\r\nX: y")
    with pytest.raises(ValueError, match="ROLLOUT_SERVER_AUTHORIZATION holds a character") as refused:
        Server(hostile.url, concurrency=1)
    assert "tr0ub4dor" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://me:tr0ub4dor@host:8000", "ftp://me:tr0ub4dor@host", "http://tr0ub4dor@host"])
def test_a_password_in_base_url_is_refused_and_never_shown(url):
    with pytest.raises(ValueError, match=r"base_url") as caught:
        VLLMConfig(mode="server", base_url=["http://fine:1", url])
    assert "tr0ub4dor" not in str(caught.value)


def test_clients_that_are_made_and_first_used_at_once_do_not_meet():
    """Several threads begin their first exchange at the same moment, each with a server of its own."""
    before = threading.active_count()
    with HostileServer(lambda *_: [WHOLE]) as hostile, ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            servers = [Server(hostile.url, concurrency=2) for _ in range(4)]
            got = list(pool.map(lambda server: server.weight_version(Deadline(5)), servers * 2))
            assert got == ["default"] * 8
            for server in servers:
                server.close()
                server.close()
    assert threading.active_count() < before + 20, "closed clients leave threads"
