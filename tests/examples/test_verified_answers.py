"""The example of answers that a function checks: which answer is trained, to its end token, and what is counted."""

from pathlib import Path

import pytest

from examples.verified_answers import VerifiedAnswers, check, load_sums, make_tokenizer
from rollout_sft import Rollout

TOKENIZER = make_tokenizer()
SAMPLE = {"id": "s", "number": 37, "prompt_ids": TOKENIZER("37=")["input_ids"], "reference": "18+19"}


def rollout(text, truncated=False):
    return Rollout(response_ids=TOKENIZER(text)["input_ids"], truncated=truncated)


def trained(target):
    """The text of the supervised targets, with the end token."""
    segment = target.segment
    return TOKENIZER.decode(segment.targets[segment.indices["supervised"]])


@pytest.mark.parametrize(("answer", "right"), [("18+19", True), ("36+1", True), ("37", False), ("18+18", False)])
def test_the_function_accepts_right_answers_alone(answer, right):
    assert (check(SAMPLE, answer) > 0) is right
    assert check(SAMPLE, "36+1") > check(SAMPLE, "18+19"), "the shorter the better"


def test_the_best_accepted_rollout_is_trained_else_the_reference():
    builder = VerifiedAnswers(TOKENIZER, None)
    said = ["40+2", "30+7", "18+19", "36+1"]
    expected = ["18+19", "30+7", "30+7", "30+7"]
    targets = [builder.build(SAMPLE, rollout(text)) for text in said]
    assert [trained(target) for target in targets] == [f"{text}<eos>" for text in expected]
    assert [t.counters["answers/accepted"] for t in targets] == [(0.0, 1.0), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0)]
    assert [t.counters["answers/from_reference"][0] for t in targets] == [1.0, 0.0, 0.0, 0.0]


def test_every_target_ends_with_the_end_token_and_leaves_the_prompt_untrained():
    segment = VerifiedAnswers(TOKENIZER, None).build(SAMPLE, rollout("30+7")).segment
    assert TOKENIZER.decode(segment.input_ids) == "37=30+7<eos>"
    assert segment.indices["supervised"].tolist() == [2, 3, 4, 5, 6], "from the last token of the prompt on"


def test_an_answer_that_was_cut_off_is_not_accepted():
    builder = VerifiedAnswers(TOKENIZER, None)
    assert trained(builder.build(SAMPLE, rollout("30+7", truncated=True))) == "18+19<eos>"
    assert builder.score(SAMPLE, rollout("30+7")) == {"answers/accepted": (1.0, 1.0)}


def test_the_samples_are_the_same_in_every_run_and_their_references_are_right():
    samples = load_sums(tokenizer=TOKENIZER, split="train", size=50, seed=1)
    assert samples == load_sums(tokenizer=TOKENIZER, split="train", size=50, seed=1)
    assert all(check(sample, sample["reference"]) for sample in samples)


def test_the_example_stays_short():
    assert len(Path("examples/verified_answers.py").read_text().splitlines()) < 120
