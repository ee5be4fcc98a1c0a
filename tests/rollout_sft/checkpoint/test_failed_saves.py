"""On one rank: whichever file of a checkpoint cannot be written, the save raises and the last good one stays."""

import shutil

import pytest

from rollout_sft.checkpoint.manifest import last_finished_checkpoint

FILES = [
    "model.safetensors",
    "config.json",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "carry_buffer_rank0.pt",
    "finished",
]


@pytest.mark.parametrize("scope", ["micro", "window"])
def test_a_save_that_fails_raises_and_the_checkpoint_before_stays(make_trainer, tmp_path, scope):
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "check_isolation": False}
    trainer = make_trainer(post_rollout_pack_scope=scope, max_steps=1, **settings)
    trainer.train()
    folder = tmp_path / "run"
    trainer.state.global_step = 2
    for name in FILES:
        if scope == "window" and name.startswith("carry"):
            continue
        (folder / "checkpoint-2" / name / "taken").mkdir(parents=True)
        with pytest.raises(Exception, match=r"(?i)directory|cannot be opened"):
            trainer._save_checkpoint(trainer.model, None)
        assert last_finished_checkpoint(folder) == str(folder / "checkpoint-1"), name
        assert trainer.args.save_total_limit == 1, name
        shutil.rmtree(folder / "checkpoint-2")
    trainer._save_checkpoint(trainer.model, None)
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
