"""One rank cannot write one file of a checkpoint; started by test_save_failures.py.

The file's name is taken by a folder, so that writing it really fails. A failure that is shared leaves the processes
usable, so many cases run in one launch. Where weights are sharded, some files are written in the middle of collectives;
a rank that fails there has to end, so such a case is the last of its launch.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import torch.distributed as dist
from transformers import TrainerCallback

from rollout_sft.ranks.distributed import is_sharded, leave_together
from tests.distributed.shared_failures_worker import error_of
from tests.distributed.worker import FSDP2, build

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
SHARDED_FILES = {
    **{name: rank for name, rank in FILES.items() if name != "optimizer.pt"},
    "pytorch_model_fsdp.bin": 0,
    "optimizer.bin": 0,
}
"""The same with FSDP2 through accelerate."""
IN_COLLECTIVES = ("pytorch_model_fsdp.bin", "optimizer.bin", "scheduler.pt", "trainer_state.json")
"""Files of FSDP2 that end the processes."""
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


def save(folder, name, scope, best, sharded):
    settings = {**COMMON, **(BEST if best else {}), **(FSDP2 if sharded else {})}
    trainer = build(folder, post_rollout_pack_scope=scope, **settings)
    trainer.add_callback(TakeTheName(folder, name))
    error = error_of(trainer.train)
    return {"error": error, "step": trainer.state.global_step, "sharded": is_sharded(trainer.model_wrapped)}


def finished(folder):
    return sorted(p.parent.name for p in folder.glob("checkpoint-*/finished") if p.is_file())


if __name__ == "__main__":
    folder, sharded, cases = Path(sys.argv[1]), sys.argv[2] == "fsdp2", json.loads(sys.argv[3])
    results = {}
    for name, scope, best in cases:
        own = folder / f"{name}-{scope}-{best}"
        result = results[f"{name} {scope} {best}"] = save(own, name, scope, best, sharded)
        ends = sharded and name in IN_COLLECTIVES
        if not ends:
            dist.barrier()
        result["finished"] = finished(own)
        rank = os.environ["RANK"]
        (folder / f"rank{rank}.json").write_text(json.dumps(results))
        if ends:
            os._exit(0)  # closes the connections, on which the other rank may still wait
        dist.barrier()
        if rank == "0":
            shutil.rmtree(own)
    leave_together()
