"""The log says what becomes of generated tokens: how many a segment keeps, and how many positions train."""

import pytest
from transformers import TrainerCallback

from rollout_sft.inputs.segment import Segment
from rollout_sft.rollouts.base import Rollout
from rollout_sft.step.token_flow import TokenFlow
from rollout_sft.targets.base import Target

PROMPT = [7, 8]
END = 1
"""The end token, which no response contains."""


def segment(ids, trained=2):
    weights = [0.0] * len(ids)
    weights[-1 - trained : -1] = [1.0] * trained
    return Segment.from_lists(ids, ids, weights, sample_id="a")


@pytest.mark.parametrize(
    ("ids", "response", "kept"),
    [
        ([7, 8, 1, 2, 3, 9], [1, 2, 3, 4, 5], 3),
        ([7, 8, 1, 2, 3], [1, 2, 3], 3),
        ([7, 8, 1, 2, 3, 4], [1, 2], 2),
        ([7, 8, 5, 6, 9], [1, 2], 0),
        ([7, 8, 5, 6], [], 0),
    ],
)
def test_kept_tokens_are_those_that_the_segment_repeats(ids, response, kept):
    flow = TokenFlow(ranks=2)
    flow.add(PROMPT, Rollout(response_ids=response, truncated=False), segment(ids))
    flow.add(PROMPT, None, segment(ids, trained=1))
    assert flow.take() == {
        "tokens/generated": (len(response), 0.5),
        "tokens/kept": (kept, 0.5),
        "tokens/trained": (3, 0.5),
    }
    assert flow.take()["tokens/generated"] == (0, 0.5)


class KeepsFour:
    """Keeps four tokens of each response, and trains the last two of them."""

    def build(self, sample, rollout):
        ids = [*sample["prompt_ids"], *rollout.response_ids[:4], END]
        return Target(segment=segment(ids), counters={})

    def build_reference(self, sample):
        raise AssertionError("every sample has a rollout")

    score = build_reference


@pytest.mark.parametrize("scope", ["micro", "window"])
def test_a_run_counts_the_tokens_of_every_step(make_trainer, scope):
    lines = []

    class Keep(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                lines.append(logs)

    trainer = make_trainer(
        builder=KeepsFour(), post_rollout_pack_scope=scope, max_steps=2, reference_fraction=0.0, check_isolation=False
    )
    trainer.add_callback(Keep())
    trainer.train()
    assert len(lines) == 2
    for line in lines:
        assert line["tokens/kept"] == 9 * 4
        assert line["tokens/trained"] == 9 * 2
        assert line["tokens/generated"] == 9 * 24
