"""A run logs how full its windows are, and which batch size would fill them."""

import logging
from types import SimpleNamespace

import numpy as np

from rollout_sft.reporting.window_fill import FillEstimate


def test_a_run_logs_at_its_first_window_and_after_512_segments(make_trainer, caplog):
    trainer = make_trainer(max_steps=4, num_train_epochs=2, post_rollout_pack_scope="window")
    trainer.fill_estimate._seen = [120] * 504  # 8 segments short of enough before the first window's 9
    with caplog.at_level(logging.INFO, logger="rollout_sft.reporting.window_fill"):
        trainer.train()
    said = [record.getMessage() for record in caplog.records if record.name == "rollout_sft.reporting.window_fill"]
    assert len(said) == 1
    assert "from 513 segments" in said[0]
    assert "less than 1 whole window in 10,000 infeasible. The estimate holds with 95 % confidence" in said[0]
    assert "allows for 0.58% of the segments being as long as a pack" in said[0]
    caplog.clear()
    fresh = make_trainer(max_steps=2, post_rollout_pack_scope="window")
    with caplog.at_level(logging.INFO, logger="rollout_sft.reporting.window_fill"):
        fresh.train()
    said = [record.getMessage() for record in caplog.records if record.name == "rollout_sft.reporting.window_fill"]
    assert len(said) == 1
    assert "from 9 segments" in said[0]
    assert "per_device_train_batch_size 3." in said[0]
    assert "First guess: " in said[0]
    assert "10,000" not in said[0], "it promises nothing"


def test_scope_global_estimates_with_the_window_of_all_ranks():
    lens = np.clip(np.random.default_rng(0).lognormal(0, 0.6, 512) * 2050, 8, 14000).astype(int).tolist()
    said = {}
    for scope, ranks in (("window", 8), ("global", 1), ("global", 8), ("global", 4096)):
        settings = {"packing": True, "post_rollout_pack_scope": scope, "world_size": ranks, "process_index": 0}
        sizes = {"packing_length": 14000, "gradient_accumulation_steps": 8, "per_device_train_batch_size": 1}
        estimate = FillEstimate(SimpleNamespace(**settings, **sizes))
        estimate._seen = lens
        said[scope, ranks] = estimate.message()
    assert "3 would bring it to 0.52 with less than 1" in said["window", 8]
    estimate._batch_size, estimate._ranks = 3, 1
    assert "batch_size 3. No other would fill them more with less than 1 whole window in" in estimate.message()
    assert said["global", 1] == said["window", 8]
    assert "4 would bring it to 0.69 in windows of 8 ranks together with less than 1" in said["global", 8]
    assert "in windows of 64 ranks together" in said["global", 4096]
