"""kill -9 and resume: weights, optimizer, rollouts, log and buffer are those of an uninterrupted run, bit for bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from packsched import CarryBuffer
from rollout_sft.checkpoint.carry_buffer import load_carry_buffer, save_carry_buffer
from rollout_sft.checkpoint.manifest import FINISHED, last_finished_checkpoint
from rollout_sft.inputs.images import Image
from rollout_sft.inputs.segment import Segment
from tests import processes

WORKER = "tests.rollout_sft.checkpoint.resume_worker"


def run(folder, scope, kill_step=-1, kill_save=0):
    return processes.run(WORKER, str(folder), scope, str(kill_step), str(kill_save), output=folder / "output.txt")


def end_of(folder):
    return torch.load(Path(folder) / "end.pt", weights_only=True)


def answers_of(folder):
    """Step -> rollouts; where a step was run twice, both must be the same."""
    answers = {}
    for line in (Path(folder) / "answers.jsonl").read_text().splitlines():
        step, rollouts = json.loads(line)
        assert answers.setdefault(step, rollouts) == rollouts, f"step {step} answered differently after the resume"
    return answers


def without_times(log):
    clocks = (
        "time/",
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
        "total_flos",
        "train_loss",
    )
    return [{k: v for k, v in entry.items() if not k.startswith(clocks)} for entry in log if "loss" in entry]


def assert_same(one, other):
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, other["model"][name]), name
    for number, state in one["optimizer"].items():
        for name, value in state.items():
            assert torch.equal(value, other["optimizer"][number][name]), (number, name)
    assert without_times(one["log"]) == without_times(other["log"])
    assert len(one["left"]) == len(other["left"])
    assert all(torch.equal(a, b) for a, b in zip(one["left"], other["left"], strict=True))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Scope -> the folder of a run that nobody kills, both in a new interpreter: its hashes have another seed."""
    folders = {scope: tmp_path_factory.mktemp(scope) for scope in ("micro", "window")}
    runs = "; ".join(f"main({str(folder)!r}, {scope!r}, -1, 0)" for scope, folder in folders.items())
    command = [sys.executable, "-c", f"from {WORKER} import main; {runs}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=processes.ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return folders


@pytest.mark.parametrize("scope", ["micro", "window"])
@pytest.mark.parametrize("kill_step", [3, 4])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, uninterrupted, scope, kill_step):
    killed = run(tmp_path, scope, kill_step=kill_step)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "end.pt").exists()
    resumed = run(tmp_path, scope)
    assert resumed.returncode == 0, resumed.text()[-3000:]
    assert_same(end_of(tmp_path), end_of(uninterrupted[scope]))
    assert answers_of(tmp_path) == answers_of(uninterrupted[scope])


def test_the_interrupted_runs_carried_segments(uninterrupted):
    """Otherwise scope micro would show nothing about the buffer."""
    assert end_of(uninterrupted["micro"])["left"]


@pytest.mark.parametrize("kill_save", [6, 8, 10])
def test_a_save_that_is_killed_leaves_the_last_good_checkpoint(tmp_path, uninterrupted, kill_save):
    """The second checkpoint dies in its carry buffer, its optimizer, its generators: the first is still used."""
    killed = run(tmp_path, "micro", kill_save=kill_save)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "checkpoint-4").is_dir(), "the save had not begun: the test would show nothing"
    assert last_finished_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    resumed = run(tmp_path, "micro")
    assert resumed.returncode == 0, resumed.text()[-3000:]
    assert_same(end_of(tmp_path), end_of(uninterrupted["micro"]))
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"], "save_total_limit: 1 still holds"


def buffer_of(*lens):
    buffer = CarryBuffer(100, packing_buffer=8)
    for n in lens:
        buffer.add(Segment.from_lists(list(range(n)), list(range(n)), [1.0] * (n - 1) + [0.0], sample_id=str(n)), n)
    return buffer


def test_waiting_images_are_saved_as_the_references_that_they_are(tmp_path):
    encoded, path = b"any bytes", "/images/kite.png"
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    images = tuple(Image(source=source, height=2, width=3, digest=7) for source in (path, encoded, pixels))
    buffer = CarryBuffer(100, packing_buffer=9)
    buffer.add(Segment.from_lists([7, 8], [7, 8], [1.0, 0.0], images=images), 2)
    save_carry_buffer(buffer, tmp_path, rank=0, ranks=1)
    again = CarryBuffer(100, packing_buffer=9)
    load_carry_buffer(again, tmp_path, rank=0, ranks=1)
    (segment,) = again.segments
    assert [image.source for image in segment.images[:2]] == [path, encoded]
    assert np.array_equal(segment.images[2].source, pixels)
    assert [(image.height, image.width, image.digest) for image in segment.images] == [(2, 3, 7)] * 3


def test_the_carry_buffer_round_trip(tmp_path):
    save_carry_buffer(buffer_of(5, 9), tmp_path, rank=0, ranks=1)
    again = buffer_of()
    load_carry_buffer(again, tmp_path, rank=0, ranks=1)
    assert again.encoded_lens == (5, 9)
    first = again.pop_pack().segments[0]
    assert (first.sample_id, first.weight_sum, first.indices["supervised"].tolist()) == ("5", 4.0, [0, 1, 2, 3])


def test_another_number_of_ranks_is_refused_with_the_way_out(tmp_path):
    save_carry_buffer(buffer_of(5), tmp_path, rank=0, ranks=1)
    again = buffer_of(3)
    with pytest.raises(ValueError, match=r"carry buffers of 1 ranks, but 2 resume it.*post_rollout_pack_scope: window"):
        load_carry_buffer(again, tmp_path, rank=0, ranks=2)
    with pytest.raises(ValueError, match=r"has no carry_buffer_rank1\.pt"):
        load_carry_buffer(again, tmp_path, rank=1, ranks=2)
    assert again.encoded_lens == (3,), "a refused load changes nothing"


def test_only_finished_checkpoints_count_and_the_latest_step_wins(tmp_path):
    assert last_finished_checkpoint(tmp_path) is None
    for step in (2, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}" / FINISHED).touch()
    assert last_finished_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
