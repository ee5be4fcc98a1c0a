"""What each of two ranks runs when their server dies between two waves, started by test_waves.py; a file per rank."""

import hashlib
import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from transformers import TrainerCallback

from examples.digits.data import DigitsDataset
from rollout_sft.ranks.distributed import leave_together
from tests.hybrids import float64_throughout
from tests.vllm.conftest import make_model, make_trainer
from tests.waves import Echo, lines, weights


class Catch(TrainerCallback):
    """Keeps a hash of the weights after every step."""

    def __init__(self):
        self.hashes = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.hashes.append(hash_of(model))


def hash_of(model):
    return hashlib.sha256(weights(model).view(torch.uint8).numpy().tobytes()).hexdigest()


def build(folder, url):
    trainer = make_trainer(
        folder,
        model=make_model().double(),
        vllm={"mode": "server", "base_url": url, "engine_args": {}, "timeout": 120.0, "retries": 1},
        per_device_train_batch_size=2,
        gradient_accumulation_steps=12,
        global_max_length=224,
        decoding={"max_new_tokens": 160, "temperature": 1.0},
        learning_rate=1e-4,
        max_steps=2,
        rollout_waves=3,
        check_isolation=False,
        on_infeasible="extra_steps",
        save_strategy="steps",
        save_steps=1,
    )
    trainer.train_dataset = DigitsDataset("train", 96, seed=5, max_digits=5)
    trainer.window_builder._target_builder = Echo()
    trainer.catch = Catch()
    trainer.add_callback(trainer.catch)
    return trainer


def run(trainer, checkpoint=None):
    with float64_throughout():
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        finally:
            trainer.generation.close()
    return trainer


def wait_for(path):
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end, f"nobody wrote {path}"
        time.sleep(0.05)


def let_the_server_die(trainer, folder):
    """Has the server killed when something of the second window is trained and its next wave is asked for."""
    build_next = trainer.window_builder.build_next

    def dying():
        if trainer.state.global_step == 1 and trainer.denominator.used:
            (folder / f"between-waves-{dist.get_rank()}").touch()
            wait_for(folder / "killed")
        return build_next()

    trainer.window_builder.build_next = dying


def main(folder, url):
    PartialState(cpu=True)  # opens the process group
    whole = run(build(folder / "whole", url))
    killed = build(folder / "killed", url)
    let_the_server_die(killed, folder)
    try:
        run(killed)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
    else:
        raise AssertionError("the second window was not trained in waves")
    found = {"error": message, "trained": len(killed.catch.hashes), "left": hash_of(killed.model)}
    wait_for(folder / "back")
    resumed = run(build(folder / "killed", url), True)
    found["early"] = [line["packing/early_packs"] for line in lines(whole)]
    found["whole"], found["resumed"] = whole.catch.hashes, resumed.catch.hashes
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
