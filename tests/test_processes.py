"""A forked process has its imports made, and all else of its own: numbers, group, output, exit code and death."""

import json
import signal

import pytest

from tests.processes import Process, run

WORKER = "tests.forked_worker"


def test_the_imports_are_made_when_a_process_starts(tmp_path):
    process = run(WORKER, "end", output=tmp_path / "output.txt")
    assert process.returncode == 0
    assert json.loads(process.text())["loaded"] == ["torch", "transformers", "rollout_sft.trainer"]


def test_two_processes_share_neither_random_numbers_nor_a_group(tmp_path):
    one, other = (json.loads(run(WORKER, "end", output=tmp_path / name).text()) for name in ("one", "other"))
    assert not {*one["numbers"]} & {*other["numbers"]}
    assert one["group"] != other["group"]


def test_a_variable_reaches_its_process_alone(tmp_path):
    process = Process(WORKER, "end", output=tmp_path / "one", environment={"RANK": "1"})
    process.wait()
    assert json.loads(process.text())["rank"] == "1"
    assert json.loads(run(WORKER, "end", output=tmp_path / "other").text())["rank"] is None


def test_an_exception_is_an_exit_code_and_a_traceback(tmp_path):
    process = run(WORKER, "raise", output=tmp_path / "output.txt")
    assert process.returncode == 1
    assert "ValueError: as it was told to" in process.text()


def test_a_process_that_takes_too_long_is_killed(tmp_path):
    process = Process(WORKER, "sleep", output=tmp_path / "output.txt")
    with pytest.raises(TimeoutError, match=r"still runs after 0\.5 s"):
        process.wait(0.5)
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
