"""kill -9 and resume with images that wait in the carry buffer: bit for bit the run that nobody killed."""

import json
import pickle
import signal

import torch

from packsched import CarryBuffer
from rollout_sft.checkpoint.carry_buffer import save_carry_buffer
from rollout_sft.inputs.images import Image
from rollout_sft.inputs.segment import Segment
from tests import processes


def run(folder, kill_step=-1):
    folder.mkdir(exist_ok=True)
    worker = "tests.rollout_sft.checkpoint.image_resume_worker"
    return processes.run(worker, str(folder), str(kill_step), output=folder / "output.txt")


def test_a_killed_run_with_waiting_images_resumes_bit_for_bit(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole).returncode == 0, (whole / "output.txt").read_text()[-3000:]
    assert run(killed, kill_step=3).returncode == -signal.SIGKILL
    saved = torch.load(killed / "run" / "checkpoint-2" / "carry_buffer_rank0.pt", weights_only=True)
    waiting = [image["source"] for fields in saved["buffer"]["segments"] for image in fields["images"]]
    assert waiting, "no image waits in the checkpoint: the test would show nothing"
    assert all(source.startswith(str(killed)) for source in waiting)
    assert run(killed).returncode == 0, (killed / "output.txt").read_text()[-3000:]
    one, other = (torch.load(folder / "end.pt", weights_only=True) for folder in (whole, killed))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    texts = [(folder / "end.json").read_text() for folder in (whole, killed)]
    assert json.loads(texts[0].replace(str(whole), str(killed))) == json.loads(texts[1])
    assert (killed / "run" / "checkpoint-2" / "preprocessor_config.json").is_file()


def test_512_waiting_segments_with_photographs_take_little_memory_and_disk(tmp_path):
    """As pixels they would take 3.8 GB; each has 300 tokens for an image of 480 x 640."""
    ids = [7] * 340
    buffer = CarryBuffer(4096, packing_buffer=512)
    for number in range(512):
        image = Image(source=f"/data/coco/train2017/{number:012d}.jpg", height=480, width=640)
        buffer.add(Segment.from_lists(ids, ids, [1.0] * 339 + [0.0], images=(image,)), len(ids))
    assert len(pickle.dumps(list(buffer.segments))) < 100e6, "what the segments hold"
    save_carry_buffer(buffer, tmp_path, rank=0, ranks=1)
    assert (tmp_path / "carry_buffer_rank0.pt").stat().st_size < 100e6
