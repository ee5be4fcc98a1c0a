"""Two ranks stop, are refused, and resume: together, by name, and without a changed file."""

import json
import os
import signal

import pytest
from transformers import TrainerCallback

from tests.distributed.launch import start_two_ranks
from tests.processes import wait_for
from tests.rollout_sft.checkpoint.test_refused_resumes import (
    CONFIG,
    hashes,
    make_base,
    rewrite_weights,
    with_value,
    write,
)

pytestmark = pytest.mark.distributed

NEW = with_value(with_value(CONFIG, "training.resume_from_checkpoint", None), "training.max_steps", 3)


class StopInTheSecondStep(TrainerCallback):
    """The second rank is sent Ctrl-C twice, as a terminal and a launcher send it, and so is the first."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)


def run(folder, document, name):
    """Exit codes and output of the command on two ranks."""
    out = folder.parent / name
    out.mkdir()
    processes = wait_for(start_two_ranks("rollout_sft.train", out, "--config", write(folder, document)))
    return [process.returncode for process in processes], processes[0].text()


@pytest.fixture
def stopped(tmp_path):
    """The folder of a run on two ranks that was stopped in its second step."""
    folder = tmp_path / "run"
    folder.mkdir()
    make_base(folder)
    stop = with_value(NEW, "training.callbacks", [f"{__name__}:StopInTheSecondStep"])
    codes, text = run(folder, stop, "first")
    assert codes[0] == 130, text[-2000:]
    line = f"Interrupted. To go on from {folder}/out/checkpoint-1, set `resume_from_checkpoint: true` in training of "
    assert text.count(line) == 1
    assert "Traceback" not in text
    return folder


def test_a_refused_resume_ends_both_ranks_and_leaves_every_file(stopped):
    base = (stopped / "base" / "model.safetensors").read_bytes()
    resumed = with_value(NEW, "training.resume_from_checkpoint", True)
    data = with_value(resumed, "data.train.arguments.max_digits", 2)
    for number, (document, key, change) in enumerate(
        [
            (with_value(resumed, "model.peft.lora_alpha", 9), "model.peft.lora_alpha was 4 and is 9", None),
            (data, "data.train was '12 samples", None),
            (resumed, "model.base_weights was '", rewrite_weights),
        ]
    ):
        if change:
            change(stopped)
        write(stopped, document)
        before = hashes(stopped)
        codes, text = run(stopped, document, f"refused{number}")
        assert codes == [2, 2], text[-2000:]
        assert f"[rank 0] error: {stopped}/out/checkpoint-1 was saved by a run with other settings: {key}" in text
        assert "[rank 1] error: " in text
        assert hashes(stopped) == before
    (stopped / "base" / "model.safetensors").write_bytes(base)
    codes, text = run(stopped, resumed, "resumed")
    assert codes == [0, 0], text[-2000:]
    assert "evaluation before training" not in text
    assert text.count("step 2/3") == text.count("step 3/3") == 1
    log = [json.loads(line) for line in (stopped / "out" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "eval_rollout/f1" in entry] == [0, 3]
    codes, text = run(stopped, resumed, "finished")
    assert codes == [0, 0], text[-2000:]
    assert text.count("Stage train is finished in") == 1
