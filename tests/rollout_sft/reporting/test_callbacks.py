"""TensorBoard has one folder per run, whatever is logged first."""

from pathlib import Path


def test_tensorboard_writes_one_folder(make_trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    trainer = make_trainer(
        post_rollout_pack_scope="window", report_to="tensorboard", evaluation=make_trainer().train_dataset
    )
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    folders = {path.parent.relative_to(tmp_path) for path in tmp_path.rglob("*tfevents*")}
    assert folders == {Path("run/tensorboard")}


def test_a_folder_of_the_user_s_own_is_kept(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "mine"))
    make_trainer(post_rollout_pack_scope="window", report_to="tensorboard").train()
    assert {path.parent for path in tmp_path.rglob("*tfevents*")} == {tmp_path / "mine"}
