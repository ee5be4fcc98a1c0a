"""`end_rollouts`: gradients and scores are those of the whole responses, bit for bit."""

import json

import pytest
import torch

from examples.digits.data import DigitsDataset
from rollout_sft import Rollout
from rollout_sft.targets.objects.builder import ObjectsTargetBuilder

LONGEST = 300
WINDOW = {"post_rollout_pack_scope": "window", "decoding": {"max_new_tokens": LONGEST}, "global_max_length": 700}
GOOD = json.dumps(DigitsDataset("train", 1, seed=5, max_digits=5)[0]["objects"][0])
RESPONSES = [
    f"[{GOOD}]",
    f"[{GOOD}]]{GOOD}, {GOOD}]",
    f"[{GOOD}, {GOOD}{GOOD}, {GOOD}]",
    f"[{GOOD}, " + '{"desc": ' * 300,
    f"[{GOOD}, " + '{"desc": "3", "bbox_2d": [4, 8]}, ' * 40,
    f"[{GOOD}, " * 2,
    "44, " * 100,
]
ENDED_BY = {
    "closed": [False, True, True, False, False, True, True],
    "looping": [False, True, True, True, True, True, True],
}
"""Whether each response ends early; two loop inside the list, the others can gain no object."""


class Answering:
    """Gives long answers, some of which can add nothing; cut at the limit."""

    def __init__(self, speller):
        self.ids, self.counters = [speller.encode(text)[:LONGEST] for text in RESPONSES], {}

    def generate(self, requests):
        ids = [self.ids[i % len(RESPONSES)] for i in range(len(requests))]
        return [Rollout(response_ids=i, truncated=len(i) == LONGEST) for i in ids]


@pytest.fixture
def run(make_trainer, tokenizer):
    def run(how, supervision):
        trainer = make_trainer(
            backend=Answering(ObjectsTargetBuilder(tokenizer=tokenizer).speller),
            end_rollouts=how,
            prefix_supervision=supervision,
            per_device_eval_batch_size=9,
            **WINDOW,
        )
        trainer.train()
        scores = trainer.evaluate(trainer.train_dataset)
        line = next(entry for entry in trainer.state.log_history if "loss" in entry)
        return trainer, line, scores

    return run


@pytest.mark.parametrize("supervision", ["coordinates", "expert"])
def test_what_is_trained_does_not_change_by_a_bit(run, supervision):
    whole, line, scores = run("never", supervision)
    assert not any("ended_early" in name or "saved" in name for name in (*line, *scores))
    for how in ("closed", "looping"):
        cut, cut_line, cut_scores = run(how, supervision)
        assert torch.equal(cut.catcher.gradients[0], whole.catcher.gradients[0])
        for a, b in zip(whole.recorder.segments, cut.recorder.segments, strict=True):
            assert torch.equal(a.input_ids, b.input_ids)
            assert torch.equal(a.targets, b.targets)
            assert torch.equal(a.weights, b.weights)
            assert a.indices.keys() == b.indices.keys()
            assert all(torch.equal(a.indices[name], b.indices[name]) for name in a.indices)
        ended = [ENDED_BY[how][i % len(RESPONSES)] for i in range(9)]
        assert cut_line["rollout/ended_early"] == pytest.approx(sum(ended) / 9)
        assert cut_line["rollout/tokens_saved"] > 0
        assert scores["eval_rollout/f1"] == cut_scores["eval_rollout/f1"] > 0
        assert scores["eval_rollout/parse_rate"] == cut_scores["eval_rollout/parse_rate"] > 0
        assert cut_scores["eval_rollout/ended_early"] == pytest.approx(sum(ended) / 9)


def test_a_builder_without_a_reader_is_refused_before_anything_is_generated(make_trainer):
    builder = "tests.rollout_sft.targets.test_custom_builder:make_builder"
    with pytest.raises(
        ValueError, match="end_rollouts is closed, but the target builder Answers has no response_reader"
    ):
        make_trainer(target_builder=builder, end_rollouts="closed", **WINDOW)
