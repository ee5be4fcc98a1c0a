"""The events of one completion, in their places or refused: without a server, and over a socket that does its worst."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_sft.rollouts.base import RolloutRequest
from rollout_sft.rollouts.vllm.completion import Completion
from rollout_sft.rollouts.vllm.events import Events
from rollout_sft.rollouts.vllm.http import Deadline, ServerError
from rollout_sft.rollouts.vllm.routes import Server
from tests.hostile_server import HostileServer, answer, events

REQUEST = RolloutRequest(prompt_ids=[1, 2, 3], seed=5)
KNOBS = {"max_tokens": 4}


def event(ids, reason=None, **further):
    return {"choices": [{"token_ids": ids, "finish_reason": reason, **further}]}


FIRST = event([4], prompt_token_ids=[1, 2, 3])
WHOLE = [FIRST, event([5, 6], prompt_token_ids=None), event([7], "length")]
USAGE = {"choices": [], "usage": {"total_tokens": 7}}


def ask(*pieces):
    """What a client makes of a reply in these pieces."""
    with HostileServer(lambda *_: pieces) as hostile:
        return Server(hostile.url, concurrency=1).answer(REQUEST, KNOBS, Deadline(5))


@given(st.lists(st.binary(max_size=9).filter(lambda data: b"\n" not in data and not data.endswith(b"\r"))), st.data())
def test_events_are_the_same_wherever_the_pieces_are_cut(wanted, data):
    lines = [(b"data:" if each[:1] not in (b"", b" ") else b"data: ") + each for each in wanted]
    stream = b"".join(line + data.draw(st.sampled_from([b"\n\n", b"\r\n\r\n", b"\n: alive\n\n"])) for line in lines)
    reader, found, start = Events(), [], 0
    while start < len(stream):
        end = data.draw(st.integers(start + 1, len(stream)))
        found += reader.feed(stream[start:end])
        start = end
    reader.end()
    assert found == wanted


@pytest.mark.parametrize(
    "stream", [b"data: a\ndata: b\n\n", b"event: x\n", b"{}\n\n", b"\xff\xfe\n", b" data: a\n", b"<html>\n"]
)
def test_a_line_that_is_no_event_of_vllm_is_refused(stream):
    with pytest.raises(ValueError, match=r"a line that is not an event's|several lines of data"):
        Events().feed(stream)


def test_a_whole_completion_keeps_every_id():
    for pieces in ([events(*WHOLE)], [events(*WHOLE, USAGE)], [bytes([byte]) for byte in events(*WHOLE)]):
        got = ask(*pieces)
        assert (got.prompt_ids, got.token_ids) == ([1, 2, 3], [4, 5, 6, 7])


@pytest.mark.parametrize("reason", ["abort", "error", "repetition", ""])
def test_a_response_that_is_not_whole_is_refused(reason):
    with pytest.raises(ServerError, match=f"/v1/completions: the response ended with finish_reason '{reason}'"):
        ask(events(FIRST, event([6, 7], reason)))


MISPLACED = {
    "no prompt": ([event([4])], "prompt_token_ids: Field required"),
    "prompt twice": ([FIRST, FIRST], "prompt_token_ids: Input should be null"),
    "no reason": ([{"choices": [{"token_ids": [4], "prompt_token_ids": [1]}]}], "finish_reason: Field required"),
    "after the last": ([*WHOLE, event([8])], "choices: List should have at most 0 items"),
    "usage too early": ([FIRST, USAGE], "choices: List should have at least 1 item"),
    "two answers": ([{"choices": FIRST["choices"] * 2}], "choices: List should have at most 1 item"),
    "text for a number": ([FIRST, event(["5"])], "token_ids: 0: Input should be a valid integer"),
    "no JSON": ([FIRST, b"{"], "Invalid JSON"),
}


@pytest.mark.parametrize("case", MISPLACED)
def test_an_event_out_of_place_is_refused_and_not_asked_for_again(case):
    bodies, message = MISPLACED[case]
    with pytest.raises(ServerError, match=f"/v1/completions answered 200 with something else .*{message}") as caught:
        ask(events(*bodies))
    assert not caught.value.again


def test_more_tokens_than_were_asked_for_end_the_request_at_once():
    with pytest.raises(ServerError, match=r"/v1/completions: the response has 5 tokens, but 4 were asked for"):
        ask(events(FIRST, event([5, 6, 7, 8]))[:-14], 60.0)


@pytest.mark.parametrize("cut", [3, 20, 100])
def test_a_stream_that_is_cut_may_be_asked_for_again(cut):
    with pytest.raises(ServerError, match=r"/v1/completions .*broke off") as caught:
        ask(events(*WHOLE)[:-cut], None)
    assert caught.value.again


@pytest.mark.parametrize(
    ("reply", "message"),
    [(answer(b""), "broke off before the last event"), (events(FIRST), "ended its answer before the last token")],
)
def test_a_stream_that_ends_too_early_may_be_asked_for_again(reply, message):
    with pytest.raises(ServerError, match=f"/v1/completions {message}") as caught:
        ask(reply)
    assert caught.value.again


@pytest.mark.parametrize(("code", "again"), [(400, False), (404, False), (500, True), (503, True)])
def test_an_error_in_the_middle_is_passed_on_with_its_code(code, again):
    failure = {"error": {"message": "the \x1b[31m engine died", "type": "x", "param": None, "code": code}}
    with pytest.raises(ServerError, match=rf"/v1/completions answered {code}: the \[31m engine died") as caught:
        ask(events(FIRST, failure))
    assert caught.value.again == again


def test_a_rule_ends_the_request_and_the_rest_is_not_taken():
    seen = []

    def enough(ids):
        seen.append(list(ids))
        return len(ids) == 3

    completion = Completion("http://server", "/v1/completions", 4, enough)
    assert [completion.take(json.dumps(each).encode()) for each in WHOLE[:2]] == [False, True]
    assert seen == [[4], [4, 5, 6]]
