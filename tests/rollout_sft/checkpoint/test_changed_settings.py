"""A resumed run has the settings of the one that saved, or says which changed; what may change takes effect."""

import logging
import math
import re
import shutil

import pytest
import torch
from torch.utils.data import IterableDataset

from examples.digits.data import DigitsDataset
from rollout_sft.checkpoint.manifest import DamagedCheckpointError
from rollout_sft.checkpoint.settings import ChangedSettingsError

RUN = {
    "post_rollout_pack_scope": "window",
    "reference_fraction": 1.0,
    "save_strategy": "steps",
    "save_steps": 1,
    "check_isolation": False,
    "lr_scheduler_type": "constant",
}


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """Where the first test that needs it leaves its run for the others."""
    return tmp_path_factory.mktemp("saved") / "run"


@pytest.fixture
def saved(first_run, make_trainer, tmp_path):
    """The checkpoint of step 2 of a run of two steps, which is one epoch; each test has a copy of its own."""
    if not first_run.exists():
        make_trainer(max_steps=2, **RUN).train()
        (tmp_path / "run").rename(first_run)
    shutil.copytree(first_run, tmp_path / "run")
    return str(tmp_path / "run" / "checkpoint-2")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.learning_rate", 1e-3),
        ("training.gradient_accumulation_steps", 6),
        ("training.per_device_train_batch_size", 2),
        ("training.seed", 7),
        ("training.max_grad_norm", 2.0),
        ("rollout_matching.decoding", {"max_new_tokens": 25}),
        ("rollout_matching.end_rollouts", "closed"),
        ("rollout_matching.loss_reduction", "segment"),
        ("rollout_matching.post_rollout_pack_scope", "global"),
        ("rollout_matching.segment_cost", {"token": 1, "pair": 2}),
        ("global_max_length", 400),
    ],
)
def test_a_changed_setting_is_refused_by_name(saved, make_trainer, key, value):
    trainer = make_trainer(**{"max_steps": 3, **RUN, key.rpartition(".")[2]: value})
    with pytest.raises(ChangedSettingsError, match=rf"other settings: {re.escape(key)} was .*changes: \[{key}\]"):
        trainer.train(resume_from_checkpoint=saved)


def test_another_model_and_other_data_are_refused_by_name(saved, make_trainer, make_model):
    data = DigitsDataset("train", 18, seed=6, max_digits=5)
    with pytest.raises(ChangedSettingsError, match=r"settings: data\.train was '18 samples, .* is '18 samples, "):
        make_trainer(train=data, max_steps=3, **RUN).train(resume_from_checkpoint=saved)
    model = make_model(intermediate_size=52)
    trainer = make_trainer(model=model, max_steps=3, **RUN, resume_with_changes=["model"])
    with pytest.raises(ChangedSettingsError, match="model cannot change in a resumed run: the saved weights do not"):
        trainer.train(resume_from_checkpoint=saved)


def test_settings_that_change_nothing_may_change(saved, make_trainer, caplog):
    changes = {"logging_steps": 2, "save_steps": 3, "dataloader_num_workers": 1, "eval_decoding": {"temperature": 0.5}}
    trainer = make_trainer(max_steps=3, **{**RUN, **changes})
    with caplog.at_level(logging.WARNING, logger="rollout_sft.checkpoint.settings"):
        trainer.train(resume_from_checkpoint=saved)
    assert trainer.state.global_step == 3
    assert "training.max_steps was 2 when" in caplog.text


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_an_allowed_learning_rate_takes_effect_at_once(saved, make_trainer, caplog, schedule):
    keys = ["training.learning_rate", "training.weight_decay", "training.lr_scheduler_type"]
    settings = {**RUN, "learning_rate": 1e-3, "weight_decay": 0.25, "lr_scheduler_type": schedule}
    trainer = make_trainer(max_steps=4, **settings, resume_with_changes=keys)
    with caplog.at_level(logging.WARNING, logger="rollout_sft.checkpoint.settings"):
        trainer.train(resume_from_checkpoint=saved)
    expected = [1e-3, 1e-3] if schedule == "constant" else [5e-4, 2.5e-4]
    assert [e["learning_rate"] for e in trainer.state.log_history if "loss" in e][2:] == pytest.approx(expected)
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.25, 0.0}
    assert "resumed with training.learning_rate: 0.001 (was 5e-05)." in caplog.text


def test_a_later_end_gives_the_next_step_the_rate_of_the_longer_schedule(make_trainer, tmp_path):
    settings = {**RUN, "lr_scheduler_type": "linear", "learning_rate": 1e-3}
    make_trainer(max_steps=2, **settings).train()
    trainer = make_trainer(max_steps=4, **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert rates == pytest.approx([1e-3, 5e-4, 5e-4, 2.5e-4])


def test_a_setting_that_cannot_take_effect_says_so(saved, make_trainer):
    settings = {**RUN, "optim": "adafactor"}
    trainer = make_trainer(max_steps=4, **settings, resume_with_changes=["training.optim"])
    with pytest.raises(ChangedSettingsError, match=r"training\.optim cannot change in a resumed run: the saved state"):
        trainer.train(resume_from_checkpoint=saved)


def test_an_unknown_key_names_the_nearest_setting(saved, make_trainer):
    trainer = make_trainer(max_steps=3, **RUN, resume_with_changes=["learning_rate"])
    with pytest.raises(ValueError, match=r"holds 'learning_rate', .* nearest is training\.learning_rate"):
        trainer.train(resume_from_checkpoint=saved)


def test_a_longer_window_with_nothing_left_says_so(saved, make_trainer, caplog):
    settings = {**RUN, "gradient_accumulation_steps": 6, "max_steps": -1, "num_train_epochs": 1}
    trainer = make_trainer(**settings, resume_with_changes=["training.gradient_accumulation_steps"])
    trainer.train(resume_from_checkpoint=saved)
    assert "is at step 2 of 1: nothing is left to train" in caplog.text
    assert "steps of the new size" in caplog.text


@pytest.mark.parametrize("step", [1, 2], ids=["within an epoch", "at an epoch's end"])
def test_a_run_resumed_at_its_end_trains_nothing_and_says_so(saved, make_trainer, caplog, step):
    trainer = make_trainer(max_steps=step, **RUN)
    trainer.train(resume_from_checkpoint=saved.replace("checkpoint-2", f"checkpoint-{step}"))
    assert trainer.state.global_step == step
    assert trainer.catcher.gradients == []
    assert f"is at step {step} of {step}: nothing is left to train. To go on raise training.max_steps" in caplog.text


def test_a_finished_run_whose_end_was_moved_goes_on_bit_for_bit(saved, make_trainer):
    resumed = make_trainer(max_steps=3, **RUN)
    resumed.train(resume_from_checkpoint=saved)
    whole = make_trainer(max_steps=3, **RUN)
    whole.train()
    assert resumed.state.global_step == 3
    pairs = zip(resumed.model.parameters(), whole.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_damaged_file_is_refused_before_anything_is_read(saved, make_trainer):
    with open(f"{saved}/model.safetensors", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(DamagedCheckpointError, match=r"model\.safetensors has 1000 bytes .* is .*checkpoint-1\.$"):
        make_trainer(max_steps=3, **RUN).train(resume_from_checkpoint=saved)


class Stream(IterableDataset):
    """Eighteen samples, two windows, again and again."""

    def __init__(self):
        self.inner = DigitsDataset("train", 18, seed=5, max_digits=5)

    def __iter__(self):
        return iter(self.inner)


@pytest.mark.parametrize("saved_at", [2, 3, 4])
def test_a_stream_in_its_second_pass_goes_on_where_it_was(make_trainer, tmp_path, saved_at):
    settings = {**RUN, "max_steps": 5}
    whole = make_trainer(train=Stream(), **settings)
    whole.train()
    resumed = make_trainer(train=Stream(), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{saved_at}"))
    assert math.floor(whole.state.epoch) == 2, "the stream did not begin again: the test would show nothing"
    trained = [[segment.sample_id for segment in t.recorder.segments] for t in (whole, resumed)]
    assert trained[1] == trained[0][-len(trained[1]) :]
    assert len(trained[1]) == (5 - saved_at) * 9
    pairs = zip(resumed.model.parameters(), whole.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
