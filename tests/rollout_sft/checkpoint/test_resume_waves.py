"""kill -9 between two waves of a window, and resume: weights and waves are those of an uninterrupted run."""

import json
import signal

import pytest

from rollout_sft.checkpoint.response_lens import load_response_lens
from rollout_sft.checkpoint.settings import ChangedSettingsError
from tests import processes
from tests.waves import wave_trainer

WORKER = "tests.rollout_sft.checkpoint.waves_worker"


def train(folder, what):
    folder.mkdir(exist_ok=True)
    process = processes.run(WORKER, str(folder), "4", what, output=folder / "output.txt")
    found = folder / f"{what}.json"
    return process, json.loads(found.read_text()) if found.exists() else None


def test_a_run_killed_between_waves_resumes_bit_for_bit(tmp_path):
    whole, expected = train(tmp_path / "whole", "whole")
    assert whole.returncode == 0, whole.text()[-2000:]
    killed, _ = train(tmp_path / "killed", "kill")
    assert killed.returncode == -signal.SIGKILL
    resumed, found = train(tmp_path / "killed", "resume")
    assert resumed.returncode == 0, resumed.text()[-2000:]
    assert len(found["hashes"]) == 2, "it went on behind the second step"
    assert found["hashes"] == expected["hashes"][2:]
    assert found["waits"] == expected["waits"][-len(found["waits"]) :], "with the same waves"
    assert found["early"][-2:] == expected["early"][2:]
    assert min(expected["early"][2:]) > 0, "steps three and four had nothing early: nothing is shown"
    checkpoint = tmp_path / "killed" / "run" / "checkpoint-3"
    assert len(load_response_lens(checkpoint)) == 20, "the responses of one window"
    trainer = wave_trainer(tmp_path / "killed" / "run", 2, max_steps=4)
    with pytest.raises(ChangedSettingsError, match="rollout_waves was 4 and is 2"):
        trainer.train(str(checkpoint))
