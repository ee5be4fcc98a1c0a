"""A wrong answer of a user's own backend is refused in training and in evaluation, before anything is trained."""

import pytest
import torch

from rollout_sft import Rollout
from rollout_sft.rollouts.check_answers import AnswerError

WINDOW = {"post_rollout_pack_scope": "window", "decoding": {"max_new_tokens": 8}}


class Answering:
    """Answers every request as `answer` says."""

    def __init__(self, answer):
        self.answer, self.counters = answer, {}

    def generate(self, requests):
        return self.answer(requests)


def every(ids):
    return lambda requests: [Rollout(response_ids=list(ids), truncated=False) for _ in requests]


WRONG = {
    "nothing at all": (lambda requests: [None] * len(requests), "the backend returned None"),
    "one less": (lambda requests: every([5])(requests[1:]), r"returned \d rollouts for \d requests"),
    "negative": (every([-5]), "the token -5, which is not in the model's vocabulary"),
    "too large": (every([2**70]), f"the token {2**70}, which is not in the model's vocabulary"),
    "text": (every(["7"]), "holds a str; token ids are plain integers"),
    "fraction": (every([7.9]), "holds float 7.9; token ids"),
    "truth": (every([True]), "holds bool True; token ids"),
    "too long": (every([5] * 9), "the response has 9 tokens, but decoding.max_new_tokens is 8"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_answer_reaches_neither_the_loss_nor_a_score(make_trainer, tokenizer, kind):
    answer, message = WRONG[kind]
    trainer = make_trainer(backend=Answering(answer), **WINDOW)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    with pytest.raises(ValueError, match=message):
        trainer.train()
    with pytest.raises(ValueError, match=message):
        trainer.evaluate(trainer.train_dataset)
    with pytest.raises(ValueError, match=message):
        trainer.roll_out([trainer.train_dataset[0], trainer.train_dataset[1]])
    assert trainer.state.global_step == 0
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_an_end_token_inside_a_response_is_refused(make_trainer, tokenizer):
    trainer = make_trainer(backend=Answering(every([5, tokenizer.eos_token_id, 5])), **WINDOW)
    with pytest.raises(AnswerError, match=r"rollout request 0: position 1 of 3 .* the end token"):
        trainer.train()
