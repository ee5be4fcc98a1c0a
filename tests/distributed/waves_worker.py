"""What each rank runs for the tests of waves: ten steps with one wave and with four, and a backend that fails."""

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist

from rollout_sft.ranks.distributed import leave_together
from tests.waves import Echo, Prompts, ScriptedBackend, lines, run, train, wave_trainer, weights


class Uneven(Echo):
    """Rank 1 trains every third token of a response, so its packs fill later than those of rank 0."""

    def __init__(self):
        super().__init__(shorter=3 if int(os.environ["RANK"]) == 1 else 1)


def compare(folder, *, sharded, samples=400, waves=4, **more):
    one, some = (
        train(folder / f"{sharded}{samples}{k}", k, sharded=sharded, builder=Uneven(), data=Prompts(samples), **more)
        for k in (1, waves)
    )
    pairs = zip(some.catch.gradients, one.catch.gradients, strict=True)
    return {
        "gradients": [float((a - b).norm() / b.norm()) for a, b in pairs],
        "weights": float((weights(some.model) - weights(one.model)).abs().max()),
        "hashes": some.catch.hashes,
        "micro_steps": some.catch.micro_steps,
        "early": [line["packing/early_packs"] for line in lines(some)],
        "losses": [[line["loss"] for line in lines(trainer)] for trainer in (some, one)],
        "waits": some.backend.waits,
    }


def fails_on_one_rank(folder):
    trainer = wave_trainer(folder, 4, backend=ScriptedBackend(fails_in_wave=2 if dist.get_rank() == 1 else None))
    try:
        run(trainer)
    except Exception as error:
        return f"{type(error).__name__}: {error}", [stream.closed for stream in trainer.backend.streams]
    return "no error", []


def main(folder):
    found = {
        "ddp": compare(folder, sharded=False),
        "fsdp2": compare(folder, sharded=True),
        "short": compare(folder, sharded=False, samples=44, max_steps=-1, num_train_epochs=1),
        "failed": fails_on_one_rank(folder / "failed"),
    }
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
