"""The benchmark of growth compares trainers that do the same work, and computes what its tables say."""

from dataclasses import replace

import pytest

from benchmarks.step_time import growth_report
from benchmarks.step_time.answers import MadeAnswers, box_tokenizer
from benchmarks.step_time.axes import AXES, PLAIN, STEPS, WORKLOAD, window_trainers
from benchmarks.step_time.growth import exponent
from benchmarks.step_time.memory import held_by
from benchmarks.step_time.timed import Timed
from rollout_sft.rollouts.base import RolloutRequest
from rollout_sft.targets.objects.builder import ObjectsTargetBuilder


def test_all_trainers_have_the_same_loss_and_their_parts_sum_to_the_step():
    losses = {}
    for name, make in window_trainers(replace(WORKLOAD, gradient_accumulation_steps=2)).items():
        trainer = make()
        timed = Timed(trainer)
        trainer.train()
        losses[name] = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        assert len(timed.steps) == len(losses[name]) == STEPS
        for step in timed.steps:
            assert step["own"] + step["model"] == pytest.approx(step["step"])
            assert min(step["own"], step["model"]) > 0
        medians = timed.medians()
        assert (medians["schedule"] > 0) == (name != PLAIN)
        assert medians["build"] + medians["schedule"] < medians["own"]
    assert losses["window, dense"] == pytest.approx(losses[PLAIN], rel=1e-5)
    assert losses["window, balanced"] == pytest.approx(losses[PLAIN], rel=1e-5)


def test_the_exponent_is_that_of_the_upper_half_of_the_values():
    values = [2**k for k in range(8)]
    assert exponent(values, [3 * v**1.5 for v in values]) == pytest.approx(1.5)
    assert exponent(values, [100.0 if v < 16 else v**2 for v in values]) == pytest.approx(2)


def test_answers_made_beforehand_are_read_and_mostly_matched():
    tokenizer = box_tokenizer()
    data = MadeAnswers(tokenizer, samples=3, objects=40)
    builder = ObjectsTargetBuilder(tokenizer=tokenizer)
    for number in range(3):
        [rollout] = data.generate([RolloutRequest(prompt_ids=data[number]["prompt_ids"], seed=0)])
        counters = builder.score(data[number], rollout)
        assert counters["rollout/parse_rate"] == (1, 1)
        assert counters["rollout/precision"][1] == 40
        assert 24 <= counters["rollout/matched"][0] <= 38
    own = [data.generate([RolloutRequest(prompt_ids=sample["prompt_ids"], seed=0)])[0] for sample in data]
    assert len({tuple(rollout.response_ids) for rollout in own}) == 3


def test_the_log_is_told_apart_from_the_rest_of_the_memory():
    name = "a name"
    assert len(held_by([{name: 1.5}, {name: 2.5}])) == 5, "two lines, their two numbers and one name"
    begin = {"resident": 1_000_000, "tracked": 500, "blocks": 10_000, "log_bytes": 10_000, "log_blocks": 100}
    end = {"resident": 1_100_000, "tracked": 510, "blocks": 11_000, "log_bytes": 110_000, "log_blocks": 1_100}
    assert growth_report.rise([begin, end], "resident") == pytest.approx(0.1)
    assert growth_report.rise([begin, end], "tracked") == pytest.approx(0.02)
    assert growth_report.without_log([begin, end], "resident") == 0
    assert growth_report.without_log([begin, end], "blocks") == 0


def test_windows_of_8_to_2048_segments_are_measured():
    assert [axis.name for axis in AXES][:4] == [
        "segments of a window",
        "tokens of a segment",
        "tokens of the vocabulary",
        "waiting segments",
    ]
    assert (AXES[0].values[0], AXES[0].values[-1]) == (8, 2048)
