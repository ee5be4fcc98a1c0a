"""What a run starts from: never half a checkpoint, never what an earlier run left, and nothing dropped silently."""

import logging
import re

import pytest

from examples.digits.data import DigitsDataset
from rollout_sft.checkpoint.manifest import FINISHED

MICRO = {
    "post_rollout_pack_scope": "micro",
    "global_max_length": 120,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "packing_buffer": 64,
    "reference_fraction": 1.0,
}


@pytest.fixture
def saved(make_trainer):
    """The folder of a checkpoint in scope micro, and the lengths that wait in it."""
    trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1, **MICRO)
    trainer.train()
    waiting = [s.encoded_len for s in trainer.schedule.waiting]
    assert len(waiting) > 0
    return f"{trainer.args.output_dir}/checkpoint-1", waiting


def test_segments_that_wait_in_a_checkpoint_are_reported_for_a_new_scope(saved, make_trainer, caplog):
    checkpoint, waiting = saved
    changes = {"post_rollout_pack_scope": "window", "global_max_length": 400}
    allowed = ["rollout_matching.post_rollout_pack_scope", "global_max_length"]
    trainer = make_trainer(max_steps=2, **{**MICRO, **changes}, resume_with_changes=allowed)
    with caplog.at_level(logging.WARNING, logger="rollout_sft.checkpoint.resume"):
        trainer.train(resume_from_checkpoint=checkpoint)
    assert f"{len(waiting)} segments ({sum(waiting)} tokens) wait in the checkpoint's carry buffers" in caplog.text
    assert trainer.state.global_step == 2


def test_an_unfinished_checkpoint_is_refused_by_its_path_too(saved, make_trainer, tmp_path):
    checkpoint, _ = saved
    finished = tmp_path / "run" / "checkpoint-1" / FINISHED
    finished.unlink()
    trainer = make_trainer(max_steps=2, **MICRO)
    with pytest.raises(
        ValueError,
        match=re.escape(f"{checkpoint} has no file named finished")
        + ".* no other finished checkpoint that is undamaged",
    ):
        trainer.train(resume_from_checkpoint=checkpoint)
    finished.touch()
    trainer.train(resume_from_checkpoint=checkpoint)
    assert trainer.state.global_step == 2


def test_a_second_run_of_a_trainer_starts_with_nothing_waiting(make_trainer):
    data = DigitsDataset("train", 4, seed=5, max_digits=5)
    trainer = make_trainer(train=data, max_steps=1, **MICRO)
    trainer.train()
    assert len(trainer.schedule.waiting) > 0
    first = len(trainer.recorder.segments)
    trainer.train()
    again = trainer.recorder.segments[first:]
    trained = sum(len(lens) for lens in trainer.last_window)
    assert trained + len(trainer.schedule.waiting) == len(again), "segments of the first run came back"
