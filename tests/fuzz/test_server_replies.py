"""Replies of a server drawn at random, over a real socket: a right rollout, or an error of the documented kinds.

Most are made of a right reply by a few changes, since noise alone never comes far.
"""

import copy
import json
import time
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_sft.config.decoding import Decoding
from rollout_sft.rollouts.base import RolloutRequest
from rollout_sft.rollouts.check_answers import AnswerError, AnswerLimits, checked
from rollout_sft.rollouts.live_weights import LiveWeights
from rollout_sft.rollouts.vllm.backend import Answer, VLLMBackend
from rollout_sft.rollouts.vllm.http import Deadline, ServerError
from rollout_sft.rollouts.vllm.routes import Server
from tests.fuzz.cases import cases
from tests.hostile_server import HostileServer, answer

pytestmark = pytest.mark.fuzz

END, VOCABULARY, LONGEST = 2, 50, 4
REQUEST = RolloutRequest(prompt_ids=[4, 5, 6], seed=1)
LIMITS = AnswerLimits(vocab_size=VOCABULARY, max_new_tokens=LONGEST, end_ids=frozenset([END]))
PATIENCE = 5.0

ODD = st.sampled_from(
    [None, True, False, "", "7", "\x1b[2J", "\ud800", [], {}, [[]], -1, 0, 7.9, 7.0, 50, 2**31, 2**63, 2**70, 10**400]
)
NUMBERS = st.integers(-3, VOCABULARY + 3) | st.integers() | st.floats() | st.booleans()
JSON = st.recursive(
    ODD | NUMBERS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
TOKENS = st.lists(st.integers(3, VOCABULARY - 1), max_size=LONGEST - 1).map(lambda ids: [*ids, END])


def right_events(token_ids):
    """One event for each token, as a server sends them without an interval."""
    events = []
    for n, token in enumerate(token_ids):
        last = n == len(token_ids) - 1
        choice = {"index": 0, "text": "a", "token_ids": [token], "finish_reason": "stop" if last else None}
        choice["prompt_token_ids"] = list(REQUEST.prompt_ids) if n == 0 else None
        events.append({"id": "cmpl-1", "model": "m", "choices": [choice]})
    return events


def as_stream(events):
    lines = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    return b"".join([*lines, b"data: [DONE]\n\n"])


@st.composite
def changed(draw, whole):
    """A JSON value with some of its parts replaced, removed, doubled or swapped."""
    whole = copy.deepcopy(whole)
    for _ in range(draw(st.integers(0, 2))):
        parts = list(_containers(whole))
        if not parts:
            break
        part = draw(st.sampled_from(parts))
        key = draw(st.sampled_from(sorted(part) if isinstance(part, dict) else range(len(part))))
        kind = draw(st.sampled_from(["replace", "remove", "double"]))
        if kind == "replace":
            part[key] = copy.deepcopy(draw(JSON))
        elif kind == "remove":
            del part[key]
        elif isinstance(part, list):
            part.insert(key, copy.deepcopy(part[key]))
        else:
            part[f"{key}s"] = part[key]
    return whole


def _containers(value):
    if isinstance(value, list | dict) and value:
        yield value
        for inner in value if isinstance(value, list) else value.values():
            yield from _containers(inner)


@st.composite
def http(draw, body):
    """The bytes of a reply, and whether they are a whole one with status 200."""
    status = draw(st.sampled_from([200] * 12 + [100, 204, 206, 301, 400, 404, 429, 500, 503, 999]))
    headers = draw(st.sampled_from([()] * 6 + [("Content-Encoding: gzip",), ("Connection: close",), ("X: \x1b[2J",)]))
    reply = answer(body, status=status, headers=headers)
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(reply) - 1))
        reply = draw(st.sampled_from([reply[:at], reply[:at] + draw(st.binary(max_size=6)) + reply[at:]]))
        return reply, None
    return reply, status == 200 and "gzip" not in "".join(headers)


@st.composite
def completions(draw):
    """The body, the bytes of its reply, whether they are whole, and whether the body is a right one."""
    right = right_events(draw(TOKENS))
    text = as_stream(draw(changed(right) | st.lists(JSON, max_size=3)))
    if draw(st.integers(0, 9)) == 0:
        cut = st.integers(0, len(text)).map(lambda at: text[:at])
        noise = st.binary(max_size=40) | st.just(b"[" * 3000)
        text = draw(noise | cut | st.just(b"\xef\xbb\xbf" + text) | st.tuples(cut, noise, cut).map(b"".join))
    return text, *draw(http(text)), text == as_stream(right)


class Engine:
    """One server, whose weights are taken for the live ones."""

    version, max_model_len, retries = 0, 64, 0

    def __init__(self, server):
        self._server = server

    def generate(self, requests, knobs, ends_at=None):
        got = [self._server.answer(request, knobs, Deadline(PATIENCE)) for request in requests]
        return [Answer(each.prompt_ids, each.token_ids, origin=each.server) for each in got]


@pytest.fixture(scope="module")
def hostile():
    with HostileServer(lambda *_: []) as hostile:
        yield hostile


def expected(text):
    """The rollout that a stream holds, read by Python's own parser; None if there is none."""
    try:
        lines = [line for line in text.split(b"\n") if line]
        events = [json.loads(line.removeprefix(b"data: ")) for line in lines[: lines.index(b"data: [DONE]")]]
        choices = [choice for event in events for choice in event["choices"]]
        ids, prompt = [token for choice in choices for token in choice["token_ids"]], choices[0]["prompt_token_ids"]
        if [choice["finish_reason"] is None for choice in choices] != [True] * (len(choices) - 1) + [False]:
            return None
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None
    if type(ids) is not list or type(prompt) is not list or prompt != REQUEST.prompt_ids:
        return None
    if not all(type(t) is int for t in [*ids, *prompt]) or not ids or len(ids) > LONGEST:
        return None
    body, ended = (ids[:-1], True) if ids[-1] == END else (ids, False)
    if END in body or not all(0 <= t < VOCABULARY for t in body) or (not ended and len(ids) < LONGEST):
        return None
    return body, not ended


def assert_documented(error, hostile):
    message = str(error)
    assert hostile.url in message
    assert message.isprintable(), repr(message)
    assert len(message) < 1000


@cases(1500)
@given(completions())
def test_a_completion_is_a_right_rollout_or_a_documented_error(hostile, reply):
    text, sent, whole, right = reply
    hostile.act = lambda *_: [sent, None]
    start, error = time.monotonic(), None
    with closing(Server(hostile.url, concurrency=1)) as server:
        decoding = Decoding(max_new_tokens=LONGEST)
        backend = VLLMBackend(Engine(server), LiveWeights(lambda: None), decoding, eos_token_ids=[END])
        try:
            (rollout,) = checked(backend.generate([REQUEST]), [REQUEST], LIMITS)
        except (ServerError, AnswerError) as caught:
            error = caught
    if error is not None:
        assert_documented(error, hostile)
        assert not (whole and right), (text, str(error))
    else:
        assert whole is not False, sent
        if whole:
            assert (rollout.response_ids, rollout.truncated) == expected(text), text
    assert time.monotonic() - start < PATIENCE + 1


CONTROL = {
    "read_limits": [{"data": [{"id": "m", "max_model_len": 64}]}, {"world_size": 2}],
    "weight_version": [{"weight_version": "default"}],
    "reset_prefix_cache": [{"success": True}],
    "configuration": [{"results": ['{"hidden_size": 64}']}],
    "receive": [{"results": ["24"]}],
    "open_streams": [{"results": ["name"]}],
}


@st.composite
def control_replies(draw):
    route = draw(st.sampled_from(sorted(CONTROL)))
    bodies = [json.dumps(draw(changed(right) | JSON)).encode() for right in CONTROL[route]]
    return route, [draw(http(body))[0] for body in bodies]


@cases(700)
@given(control_replies())
def test_a_control_route_answers_in_its_type_or_with_a_documented_error(hostile, drawn):
    route, replies = drawn
    queue = iter(replies)
    hostile.act = lambda *_: [next(queue, b""), None]
    with closing(Server(hostile.url, concurrency=1)) as server:
        try:
            got = getattr(server, route)(Deadline(PATIENCE))
        except ServerError as error:
            assert_documented(error, hostile)
            return
    if route == "read_limits":
        assert type(server.max_model_len) is int
        assert server.max_model_len >= 1
        assert 1 <= server.devices <= 65536
    else:
        kinds = {"weight_version": str, "reset_prefix_cache": bool, "configuration": dict, "receive": list}
        assert type(got) is kinds.get(route, set)
