"""Where the time of a step goes: the parts add up to the step, and none of them counts a second of another."""

import time

import pytest
from transformers import TrainerCallback

from examples.digits.data import DigitsDataset
from rollout_sft.reporting.stopwatch import Stopwatch, phase


class WallTime(TrainerCallback):
    """Measures the time between log lines by itself, and keeps every line of a step."""

    def __init__(self):
        self.walls, self.lines = [], []

    def on_epoch_begin(self, args, state, control, **kwargs):
        if not self.walls:
            self._since = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            now = time.perf_counter()
            self.walls.append(now - self._since)
            self.lines.append(dict(logs))
            self._since = now


def parts(line):
    return {name: value for name, value in line.items() if name.startswith("time/") and name != "time/step_s"}


def test_an_inner_phase_pauses_the_outer_one():
    stopwatch = Stopwatch()
    with stopwatch.running():
        began = time.perf_counter()
        with phase("build"):
            time.sleep(0.02)
            with phase("wait"):
                time.sleep(0.05)
            with phase("wait"):
                time.sleep(0.03)
        stopwatch.outside("train")
        time.sleep(0.04)
        seconds = stopwatch.take()
        wall = time.perf_counter() - began
    assert sum(seconds.values()) == pytest.approx(wall, abs=0.002)
    assert seconds["wait"] >= 0.08
    assert 0.02 <= seconds["build"] < 0.045
    assert 0.04 <= seconds["train"] < 0.065
    assert seconds["other"] < 0.01


def test_a_phase_that_raises_has_ended():
    stopwatch = Stopwatch()
    with stopwatch.running():
        with pytest.raises(OSError, match="full"), phase("build"):
            raise OSError("full")
        stopwatch.take()
        time.sleep(0.01)
        assert set(stopwatch.take()) == {"other"}


def test_nothing_is_measured_outside_of_training():
    with phase("build"):
        time.sleep(0.01)
    stopwatch = Stopwatch()
    with stopwatch.running():
        assert set(stopwatch.take()) == {"other"}


@pytest.mark.parametrize("scope", ["micro", "window"])
def test_the_parts_of_a_step_add_up_to_the_step(make_trainer, scope):
    clock = WallTime()
    evaluated = DigitsDataset("eval", 2, seed=1, max_digits=2)
    trainer = make_trainer(
        max_steps=4, post_rollout_pack_scope=scope, evaluation=evaluated, eval_strategy="steps", eval_steps=2
    )
    trainer.add_callback(clock)
    trainer.train()
    assert len(clock.lines) == 4
    for line in clock.lines:
        assert sum(parts(line).values()) == pytest.approx(line["time/step_s"])
        assert {"time/rollout_s", "time/build_s", "time/pack_s", "time/train_s", "time/other_s"} <= set(line)
    assert sum(line["time/step_s"] for line in clock.lines) == pytest.approx(sum(clock.walls), rel=0.01)
    assert [line.get("time/evaluation_s", 0.0) > 0 for line in clock.lines] == [False, False, True, False]


def test_seconds_of_several_steps_are_a_mean_per_step(make_trainer):
    clock = WallTime()
    trainer = make_trainer(max_steps=4, logging_steps=2, post_rollout_pack_scope="window")
    trainer.add_callback(clock)
    trainer.train()
    assert [2 * line["time/step_s"] for line in clock.lines] == pytest.approx(clock.walls, rel=0.02)
