"""One rank cannot write one file of a checkpoint; started by test_save_failures.py.

The file's name is taken by a folder, so that writing it really fails. All of it runs in one launch: a failure that is
shared leaves the processes usable.
"""

import json
import shutil
import sys
from pathlib import Path

import torch.distributed as dist
from transformers import TrainerCallback

from rollout_sft.ranks.distributed import leave_together
from tests.distributed.shared_failures_worker import error_of
from tests.distributed.worker import build

FILES = {
    "model.safetensors": 0,
    "config.json": 0,
    "training_args.bin": 0,
    "optimizer.pt": 0,
    "scheduler.pt": 0,
    "rng_state_0.pth": 0,
    "rng_state_1.pth": 1,
    "trainer_state.json": 0,
    "carry_buffer_rank0.pt": 0,
    "carry_buffer_rank1.pt": 1,
    "finished": 0,
}
"""File -> the rank that writes it."""
COMMON = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "save_total_limit": 1}
BEST = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_rollout/f1",
}


class TakeTheName(TrainerCallback):
    """Before the second checkpoint its file's name is taken."""

    def __init__(self, folder, name):
        self.path = folder / "checkpoint-2" / name

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2 and args.process_index == 0:
            (self.path / "taken").mkdir(parents=True)


def save(folder, name, scope, best):
    trainer = build(folder, post_rollout_pack_scope=scope, **COMMON, **(BEST if best else {}))
    trainer.add_callback(TakeTheName(folder, name))
    error = error_of(trainer.train)
    dist.barrier()
    finished = sorted(p.parent.name for p in folder.glob("checkpoint-*/finished") if p.is_file())
    return {"error": error, "finished": finished, "step": trainer.state.global_step}


if __name__ == "__main__":
    folder, results = Path(sys.argv[1]), {}
    cases = [(name, "micro", True) for name in FILES]
    cases += [(name, "window", best) for name in ("model.safetensors", "rng_state_1.pth") for best in (True, False)]
    for name, scope, best in cases:
        own = folder / f"{name}-{scope}-{best}"
        results[f"{name} {scope} {best}"] = save(own, name, scope, best)
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(own)
    rank = dist.get_rank()
    (folder / f"rank{rank}.json").write_text(json.dumps(results))
    leave_together()
