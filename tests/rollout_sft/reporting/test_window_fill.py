"""A run logs how full its windows are, and which batch size would fill them."""

import logging


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
