"""Rank 1 alone fails while both ranks generate with sharded weights; started by test_sharded_failures.py."""

import json
import sys
import time
from pathlib import Path

import torch.distributed as dist

from tests.distributed.worker import build


def fail_before(trainer):
    """A sample without a prompt: this rank never reaches `generate`, where the other one waits for it."""
    samples = trainer.train_dataset

    class Broken:
        def __len__(self):
            return len(samples)

        def __getitem__(self, index):
            return {"id": "broken"} if trainer.args.process_index == 1 and index > 2 else samples[index]

    trainer.train_dataset = Broken()


def fail_inside(trainer):
    """The third forward of a rollout breaks on this rank: the other one waits for its shards."""
    if trainer.args.process_index != 1:
        return
    calls = [0]

    def hook(*_):
        if not trainer.model.training:
            calls[0] += 1
            if calls[0] == 3:
                raise MemoryError("no memory left on this rank")

    trainer.model.model.layers[1].mlp.register_forward_pre_hook(hook)


if __name__ == "__main__":
    where, folder = sys.argv[1], Path(sys.argv[2])
    trainer = build(folder, sharded=True, post_rollout_pack_scope="window", check_isolation=False)
    rank = trainer.args.process_index
    {"before": fail_before, "inside": fail_inside}[where](trainer)
    try:
        trainer.train()
    except Exception as error:
        words = {"error": f"{type(error).__name__}: {error}", "time": time.time()}
        (folder / f"rank{rank}.json").write_text(json.dumps(words))
        raise
    dist.destroy_process_group()
