"""What a run that was stopped or finished says, and what it does when it is started again."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from transformers import TrainerCallback

from rollout_sft import check, train
from tests.rollout_sft.checkpoint.test_refused_resumes import BUILT, hashes, with_value, write

NEW = with_value(BUILT, "training.resume_from_checkpoint", None)
STAGES = {
    **with_value(BUILT, "training.max_grad_norm", 3.0),
    "stages": [{"name": "one"}, {"name": "two", "training": {"learning_rate": 1e-3}}],
}
STOP = f"{__name__}:StopInTheSecondStep"


class StopInTheSecondStep(TrainerCallback):
    """Ctrl-C while step 2 of a stage is done; in a run of stages that of the second one."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2 and not args.output_dir.endswith("one"):
            os.kill(os.getpid(), signal.SIGINT)


class SetTheClockBack(TrainerCallback):
    """Before each save the folders that are there get a time in the future, the older the later."""

    def on_step_end(self, args, state, control, **kwargs):
        for path in Path(args.output_dir).glob("checkpoint-*"):
            later = 4e9 - int(path.name[11:])
            os.utime(path, (later, later))


@pytest.fixture
def interrupted(tmp_path, capsys):
    """Runs a configuration to its Ctrl-C; returns its folder and the line that it ended with."""
    handler = signal.getsignal(signal.SIGINT)

    def interrupted(document):
        path = write(tmp_path, with_value(document, "training.callbacks", [STOP]))
        with pytest.raises(SystemExit) as ended:
            train.main(["--config", path])
        signal.signal(signal.SIGINT, handler)
        assert ended.value.code == train.INTERRUPTED
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return tmp_path, said.err.splitlines()[-1]

    yield interrupted
    signal.signal(signal.SIGINT, handler)


def log_of(folder):
    """The entries of a log without what clocks measured."""
    clocks = re.compile(r"time/|.*_runtime|.*_per_second|total_flos|train_loss")
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not clocks.match(k)} for line in lines]


def test_the_line_after_ctrl_c_goes_on_when_it_is_pasted(interrupted, tmp_path_factory, capsys):
    document = with_value(NEW, "training.max_steps", 3)
    whole = tmp_path_factory.mktemp("whole")
    train.main(["--config", write(whole, document)])
    folder, line = interrupted(document)
    key = re.fullmatch(
        rf"Interrupted\. To go on from {folder}/out/checkpoint-1, set `(.*)` in training of {folder}/config\.yaml and "
        "start the same command again.",
        line,
    )[1]
    evaluations = capsys.readouterr().out.count("evaluation before training")
    document["training"].update(yaml.safe_load(key))
    train.main(["--config", write(folder, document)])
    out = capsys.readouterr().out
    assert evaluations == 0
    assert "evaluation before training" not in out, "it is not repeated"
    assert "step 2/3" in out
    assert "step 1/3" not in out
    assert log_of(folder / "out") == log_of(whole / "out")
    assert [entry["step"] for entry in log_of(folder / "out") if "eval_rollout/f1" in entry] == [0, 3]
    numbers = [json.loads((at / "out" / "summary.json").read_text()) for at in (folder, whole)]
    assert numbers[0]["f1_before"] == numbers[1]["f1_before"]
    assert numbers[0]["trained_with"] == numbers[1]["trained_with"]


@pytest.mark.parametrize(("best", "left"), [(False, ["checkpoint-4"]), (True, ["checkpoint-1", "checkpoint-4"])])
def test_the_checkpoints_that_stay_are_those_of_the_latest_step_and_the_best(tmp_path, best, left):
    training = {"max_steps": 4, "save_total_limit": 1 + best, "callbacks": [f"{__name__}:SetTheClockBack"]}
    if best:  # all scores are 0, so the first one is
        training |= {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "rollout/f1"}
        training |= {"load_best_model_at_end": True, "greater_is_better": True}
    train.main(["--config", write(tmp_path, {**NEW, "training": {**NEW["training"], **training}})])
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == left


def test_ctrl_c_before_the_first_checkpoint_says_that_nothing_is_saved(interrupted):
    folder, line = interrupted(with_value(with_value(NEW, "training.save_steps", 5), "training.max_steps", 9))
    assert line == f"Interrupted before the first checkpoint of {folder}/out: nothing can be resumed."


def test_a_run_that_resumes_already_needs_no_key(interrupted, caplog):
    folder, line = interrupted(with_value(BUILT, "training.max_steps", 3))
    assert line == f"Interrupted. To go on from {folder}/out/checkpoint-1, start the same command again."


def test_a_finished_run_says_that_nothing_was_trained(tmp_path, caplog):
    path = write(tmp_path, BUILT)
    train.main(["--config", path])
    assert "nothing was trained" not in caplog.text
    before = hashes(tmp_path)
    train.main(["--config", path])
    check.main(["--config", path])
    assert hashes(tmp_path) == before
    assert f"Stage train is finished in {tmp_path}/out, and nothing was trained. To go on raise training" in caplog.text
    summary = tmp_path / "out" / "summary.json"
    summary.write_text(json.dumps({"steps": 2.0}))  # as an earlier version wrote it
    train.main(["--config", path])
    assert "nothing was trained. An earlier version finished it, so its settings were not compared." in caplog.text


def test_a_finished_run_without_a_checkpoint_does_not_begin_anew(tmp_path, capsys):
    document = with_value(BUILT, "training.save_strategy", "no")
    train.main(["--config", write(tmp_path, document)])
    before = hashes(tmp_path)
    path = write(tmp_path, with_value(document, "training.max_steps", 4))
    with pytest.raises(SystemExit):
        train.main(["--config", path])
    said = capsys.readouterr().err
    assert f"{tmp_path}/out holds a run that ended with training.max_steps: 2, training.num_train_epochs: 3" in said
    assert "no checkpoint from which it could go on to training.max_steps: 4" in said
    assert {**hashes(tmp_path), "config.yaml": ""} == {**before, "config.yaml": ""}


def test_each_stage_is_compared_with_its_own_settings(interrupted, capsys, caplog):
    folder, line = interrupted(STAGES)
    assert f"{folder}/out/two/checkpoint-1" in line
    weights = folder / "out" / "one" / "model.safetensors"
    first = with_value(STAGES, "training.max_grad_norm", 4.0)
    first["stages"][1]["training"]["max_grad_norm"] = 3.0
    second = with_value(STAGES, "training.max_grad_norm", 3.0)
    second["stages"][1]["training"]["max_grad_norm"] = 4.0
    for document, source in ((first, "out/one"), (second, "out/two/checkpoint-1")):
        path = write(folder, document)
        before = hashes(folder)
        for command in (train, check):
            with pytest.raises(SystemExit):
                command.main(["--config", path])
            said = capsys.readouterr().err
            assert (
                f"{folder}/{source} was saved by a run with other settings: training.max_grad_norm was 3.0 and is 4.0."
                in said
            )
        assert hashes(folder) == before
    path = write(folder, STAGES)
    check.main(["--config", path])
    assert not (folder / "out" / "two" / "checkpoint-2").exists()
    stamp = weights.stat().st_mtime_ns
    train.main(["--config", path])
    assert (folder / "out" / "two" / "checkpoint-2").is_dir()
    assert weights.stat().st_mtime_ns == stamp
    assert "Stage one is finished" in caplog.text
    shutil.rmtree(folder / "out" / "two")
    train.main(["--config", path])
    assert "out/two holds no finished checkpoint: it starts from the beginning" in caplog.text


def test_a_run_that_goes_back_goes_on_from_its_own_checkpoints(tmp_path, interrupted):
    """Two steps back with another rate: what lies ahead belongs to the run that was left."""
    document = with_value(with_value(BUILT, "training.max_steps", 5), "training.learning_rate", 1e-3)
    train.main(["--config", write(tmp_path, document)])
    slower = with_value(document, "training.learning_rate", 1e-4)
    slower = with_value(slower, "training.resume_with_changes", ["training.learning_rate"])
    (tmp_path / "out" / "summary.json").unlink()
    back = with_value(slower, "training.resume_from_checkpoint", str(tmp_path / "out" / "checkpoint-1"))
    _, line = interrupted(with_value(back, "training.max_steps", 5))
    assert "checkpoint-5" in line, "nothing is saved yet: the run that was left is whole"
    train.main(["--config", write(tmp_path, with_value(back, "training.max_steps", 3))])
    (tmp_path / "out" / "summary.json").unlink()
    train.main(["--config", write(tmp_path, slower)])
    rates = {entry["step"]: entry["learning_rate"] for entry in log_of(tmp_path / "out") if "loss" in entry}
    assert rates[1] > 5e-4
    assert all(rates[step] < 1e-4 for step in (2, 3, 4, 5))


def test_a_run_that_replaces_another_is_not_taken_for_finished(tmp_path, interrupted, capsys):
    train.main(["--config", write(tmp_path, NEW)])
    other = with_value(with_value(NEW, "training.learning_rate", 1e-3), "training.overwrite_output_dir", True)
    interrupted(with_value(other, "training.max_steps", 3))
    assert not (tmp_path / "out" / "summary.json").exists()
    resumed = with_value(with_value(other, "training.max_steps", 3), "training.resume_from_checkpoint", True)
    train.main(["--config", write(tmp_path, resumed)])
    assert "step 2/3" in capsys.readouterr().out


def test_eval_on_start_is_not_repeated(interrupted):
    document = with_value(with_value(NEW, "training.max_steps", 3), "training.eval_on_start", True)
    folder, _ = interrupted(document)
    train.main(["--config", write(folder, with_value(document, "training.resume_from_checkpoint", True))])
    steps = [entry["step"] for entry in log_of(folder / "out") if "eval_rollout/f1" in entry]
    assert steps == [0, 0, 3]
