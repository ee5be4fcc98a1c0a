"""Logs steps in every scope; rank 1 takes long to build them. Started by test_times.py."""

import json
import sys
import time
from pathlib import Path

import torch.distributed as dist

from rollout_sft.ranks.distributed import leave_together
from tests.distributed.worker import build
from tests.rollout_sft.reporting.test_stopwatch import WallTime

SLOW = 0.04
"""Seconds that rank 1 takes longer for each of its nine segments."""


def train_slowly(folder, scope):
    trainer = build(folder, post_rollout_pack_scope=scope, reference_fraction=1.0, max_steps=2, check_isolation=False)
    clock = WallTime()
    trainer.add_callback(clock)
    inner = trainer.target_builder.build_reference

    def slow(sample):
        time.sleep(SLOW * trainer.args.process_index)
        return inner(sample)

    trainer.target_builder.build_reference = slow
    trainer.train()
    lines = [line for line in clock.lines if "loss" in line]
    return {"lines": lines, "walls": clock.walls}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    result = {scope: train_slowly(folder / scope, scope) for scope in ("micro", "window", "global")}
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(result))
    leave_together()
