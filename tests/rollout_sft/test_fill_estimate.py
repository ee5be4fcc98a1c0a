"""The advised batch size holds on simulated windows: nearly as full as it can be, and hardly ever too full."""

import logging

import numpy as np
import pytest

from packsched import InfeasibleWindowError, UndecidedWindowError, plan_window
from rollout_sft.fill_estimate import advise

CAP, GA = 2048, 8


def lengths(kind, n=256):
    rng = np.random.default_rng(7)
    drawn = {
        "alike": lambda: rng.normal(120, 10, n),
        "lognormal": lambda: rng.lognormal(np.log(90), 0.7, n),
        "long and short": lambda: np.where(rng.random(n) < 0.2, rng.normal(900, 120, n), rng.normal(60, 15, n)),
    }
    return np.clip(drawn[kind](), 8, CAP).astype(int).tolist()


def infeasible(lens, batch_size, windows):
    """How many of so many windows, drawn from the lengths, no plan holds."""
    rng = np.random.default_rng(11)
    refused = 0
    for window in rng.choice(lens, (windows, batch_size * GA)):
        if window.sum() > GA * CAP:
            refused += 1
        elif window.sum() > 0.8 * GA * CAP or (2 * window > CAP).sum() > GA // 2:
            try:
                plan_window(window.tolist(), CAP, GA)
            except (InfeasibleWindowError, UndecidedWindowError):
                refused += 1
    return refused


@pytest.mark.parametrize("kind", ["alike", "lognormal", "long and short"])
def test_the_advice_holds_on_simulated_windows(kind):
    lens = lengths(kind)
    advice = advise(lens, CAP, GA)
    assert advice.fill == pytest.approx(advice.batch_size * np.mean(lens) / CAP)
    assert infeasible(lens, advice.batch_size, 10_000) <= 3, "1 in 10,000, and what chance adds"
    assert advice.fill <= 0.95
    too_many = round(1.02 * CAP / np.mean(lens))
    assert infeasible(lens, too_many, 200) > 20, "a larger batch does overfill: the test would show nothing"


def test_the_advice_is_not_timid():
    """Where 0.9 is out of reach, a batch one or two larger already overfills at least 1 window in 1,000."""
    for kind, more in (("lognormal", 2), ("long and short", 1)):
        advice = advise(lengths(kind), CAP, GA)
        assert advice.fill < 0.85
        assert infeasible(lengths(kind), advice.batch_size + more, 4000) >= 4
    assert advise(lengths("alike"), CAP, GA).fill == pytest.approx(0.9, abs=0.04)


def test_one_segment_for_each_pack_always_fits():
    advice = advise([60, 90] * 70, 100, 1)
    assert advice.batch_size == 1
    assert advice.fill == pytest.approx(0.75)


def test_a_run_says_it_at_its_first_window_and_once_more(make_trainer, caplog):
    trainer = make_trainer(max_steps=4, num_train_epochs=2, post_rollout_pack_scope="window")
    trainer.fill_estimate._seen = [120] * 120  # 8 segments short of enough after the first window's 9
    with caplog.at_level(logging.INFO, logger="rollout_sft.fill_estimate"):
        trainer.train()
    said = [record.getMessage() for record in caplog.records if record.name == "rollout_sft.fill_estimate"]
    assert len(said) == 1
    assert "from 129 segments" in said[0]
    assert "would bring it to" in said[0]
    caplog.clear()
    fresh = make_trainer(max_steps=2, post_rollout_pack_scope="window")
    with caplog.at_level(logging.INFO, logger="rollout_sft.fill_estimate"):
        fresh.train()
    said = [record.getMessage() for record in caplog.records if record.name == "rollout_sft.fill_estimate"]
    assert len(said) == 1
    assert "from 9 segments" in said[0]
    assert "per_device_train_batch_size 3." in said[0]
