"""Whatever a backend answers is checked before it is used, with the index, the value and what was expected."""

import random

import numpy as np
import pytest
import torch

from rollout_sft import Rollout, RolloutRequest
from rollout_sft.rollouts.check_answers import AnswerError, AnswerLimits, checked

LIMITS = AnswerLimits(vocab_size=100, max_new_tokens=6, end_ids=frozenset([2, 3]))
REQUESTS = [RolloutRequest(prompt_ids=[10 + n, 11], seed=n) for n in range(3)]
GOOD = Rollout(response_ids=[5, 0, 99], truncated=False)


def with_second(rollout):
    return [GOOD, rollout, GOOD]


def response(ids, truncated=False, **fields):
    return Rollout(response_ids=ids, truncated=truncated, **fields)


@pytest.mark.parametrize(
    "rollout",
    [
        response([]),
        response([7] * 6, truncated=True),
        response([1, 4], prompt_ids=[11, 11]),
        response([1], origin="http://here"),
    ],
    ids=["empty", "longest", "with its prompt", "with its origin"],
)
def test_right_answers_come_back_as_they_are(rollout):
    rollouts = with_second(rollout)
    assert all(a is b for a, b in zip(checked(rollouts, REQUESTS, LIMITS), rollouts, strict=True))
    assert checked(tuple(rollouts), REQUESTS, LIMITS) == rollouts


@pytest.mark.parametrize(
    ("rollouts", "message"),
    [
        ([], "returned 0 rollouts for 3 requests; it returns one per request"),
        ([GOOD] * 2, "returned 2 rollouts for 3 requests"),
        ([GOOD] * 4, "returned 4 rollouts for 3 requests"),
        (None, "returned None for 3 requests; it returns a list"),
        (GOOD, "returned a Rollout for 3 requests"),
        (iter([GOOD] * 3), "returned a list_iterator for 3 requests"),
        ({0: GOOD}, "returned a dict for 3 requests"),
    ],
)
def test_another_number_of_answers_is_refused_with_both_numbers(rollouts, message):
    with pytest.raises(ValueError, match=message):
        checked(rollouts, REQUESTS, LIMITS)


@pytest.mark.parametrize(
    ("rollout", "message"),
    [
        (None, "the backend returned None; it returns a Rollout for every request"),
        ([5], "the backend returned a list; it returns a Rollout"),
        (response([5, -5]), "position 1 of the response holds the token -5, which is not in the .* of 100 tokens"),
        (response([100]), "position 0 of the response holds the token 100, which is not"),
        (response([5, 2**70]), f"position 1 of the response holds the token {2**70}, which is not"),
        (response([10**6000]), "holds the token of 19932 bits, which is not"),
        (response([5, "7"]), "position 1 of the response holds a str; token ids are plain integers"),
        (response([7.9]), "position 0 of the response holds float 7.9; token ids"),
        (response([5, True]), "position 1 of the response holds bool True; token ids"),
        (response([None]), "position 0 of the response holds None; token ids"),
        (response([np.int64(5)]), "position 0 of the response holds a int64; token ids"),
        (response((5, 6)), "response_ids is a tuple; it takes a list of integers"),
        (response(torch.tensor([5])), "response_ids is a Tensor; it takes a list"),
        (response("567"), "response_ids is a str; it takes a list"),
        (response(None), "response_ids is None; it takes a list"),
        (response([5] * 7), "the response has 7 tokens, but decoding.max_new_tokens is 6"),
        (response([5, 2, 6]), "position 1 of 3 of the response holds the end token 2"),
        (response([5, 6, 3]), "position 2 of 3 of the response holds the end token 3"),
        (response([5], truncated=None), "truncated is None; it takes True or False"),
        (response([5], truncated=1), "truncated is a int; it takes True or False"),
        (response([5], prompt_ids=[10, 11]), r"first at position 0: given \[11, 11\], read \[10, 11\] \(2 against 2"),
        (response([5], prompt_ids=[11]), r"first at position 1: given \[11\], read \[\] \(2 against 1 tokens\)"),
    ],
)
def test_a_wrong_answer_is_refused_with_its_index_and_value(rollout, message):
    with pytest.raises(AnswerError, match=f"rollout request 1: .*{message}") as caught:
        checked(with_second(rollout), REQUESTS, LIMITS)
    assert caught.value.index == 1
    assert len(str(caught.value)) < 1000


def test_an_answer_of_a_wave_is_named_by_its_index_among_all():
    with pytest.raises(AnswerError, match=r"rollout request 17: position 0 ") as caught:
        checked([GOOD, response([100])], REQUESTS[:2], LIMITS, indices=[4, 17])
    assert caught.value.index == 17


def test_the_message_names_the_server_that_answered():
    with pytest.raises(AnswerError, match=r"request 1, answered by http://there:1: position 0 .* the token 777"):
        checked(with_second(response([777], origin="http://there:1")), REQUESTS, LIMITS)


def test_any_single_change_of_a_right_answer_is_noticed():
    """Against a slow check, written the other way round: 2,000 answers with one thing changed, or nothing."""
    draw = random.Random(3)
    values = [-1, 0, 1, 2, 3, 4, 99, 100, 2**31, 2**64, True, False, 5.0, "5", None, np.int32(5)]
    noticed = 0
    for _ in range(2000):
        ids = [
            draw.choice(values) if draw.random() < 0.15 else draw.randrange(4, 100) for _ in range(draw.randrange(9))
        ]
        prompt = draw.choice([None, [11, 11], [11, 12]])
        right = (
            len(ids) <= 6
            and prompt != [11, 12]
            and all(type(t) is int and t in range(100) and t not in (2, 3) for t in ids)
        )
        try:
            checked(with_second(response(ids, prompt_ids=prompt)), REQUESTS, LIMITS)
            assert right, ids
        except AnswerError:
            assert not right, ids
            noticed += 1
    assert 400 < noticed < 1900
