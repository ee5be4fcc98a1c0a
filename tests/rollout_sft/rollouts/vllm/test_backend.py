"""A response that stops early is refused, unless `end_rollouts` explains it."""

from types import SimpleNamespace

import pytest

from rollout_sft import Rollout, RolloutRequest
from rollout_sft.config.decoding import Decoding
from rollout_sft.rollouts.check_answers import AnswerError
from rollout_sft.rollouts.endings import Endings
from rollout_sft.rollouts.vllm.backend import Answer, VLLMBackend
from tests.rollout_sft.rollouts.test_endings import OVER, Builder

EOS = 1
REQUEST = RolloutRequest(prompt_ids=[5], seed=0)
CLOSED = Endings(Builder(), looping=False)


class Stopping:
    """An engine that gives one response, and knows what it was asked to follow."""

    version, max_model_len, retries = 0, 100, 0

    def __init__(self, ids, reason=None):
        self.ids, self.reason, self.watched = ids, reason, None

    def generate(self, requests, knobs, watch=None):
        self.watched = watch and watch()
        return [Answer([5], list(self.ids), origin="http://there:1", finish_reason=self.reason)]


def answer(ids, endings=CLOSED, reason=None):
    weights = SimpleNamespace(version=0, require=lambda version: None)
    engine = Stopping(ids, reason)
    backend = VLLMBackend(engine, weights, Decoding(max_new_tokens=8), eos_token_ids=[EOS], endings=endings)
    (rollout,) = backend.generate([REQUEST])
    return rollout, engine


@pytest.mark.parametrize("ids", [[4, 4, 4], [4] * 7, []])
def test_a_response_that_stops_early_without_a_reason_is_refused(ids):
    for endings in (CLOSED, None):
        with pytest.raises(AnswerError, match=rf"stops after {len(ids)} of 8 tokens without an end token"):
            answer(ids, endings)


@pytest.mark.parametrize("reason", ["abort", "error", ""])
@pytest.mark.parametrize("ids", [[4, 4, EOS], [4] * 8, [4, OVER]])
def test_a_response_that_ended_for_another_reason_is_refused(ids, reason):
    with pytest.raises(AnswerError, match=rf"finish_reason '{reason}' after {len(ids)} tokens"):
        answer(ids, reason=reason)
    assert answer(ids, reason="stop")[0].response_ids


@pytest.mark.parametrize("more", [[], [6, 6], [6] * 5, [EOS]])
def test_a_response_that_can_add_nothing_is_cut_whatever_followed(more):
    rollout, engine = answer([4, OVER, *more])
    assert rollout == Rollout(response_ids=[4, OVER], truncated=True, ended=True)
    assert engine.watched([4, OVER]) == 2


def test_without_end_rollouts_nothing_is_cut_and_nothing_followed():
    rollout, engine = answer([4, OVER, 6, EOS], endings=None)
    assert rollout == Rollout(response_ids=[4, OVER, 6], truncated=False)
    assert engine.watched is None
