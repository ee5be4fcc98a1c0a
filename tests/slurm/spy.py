"""Callbacks of the jobs: which cores a rank may use, and a training that waits to be cancelled."""

import json
import os
import time
from pathlib import Path

from transformers import TrainerCallback


class Cores(TrainerCallback):
    """Writes what a rank finds at the start of training: its cores, its machine's rank, its process."""

    def on_train_begin(self, args, state, control, **kwargs):
        found = {
            "cores": len(os.sched_getaffinity(0)),
            "ranks": args.world_size,
            "node": os.environ.get("SLURM_NODEID"),
        }
        found |= {"job": os.environ["SLURM_JOB_ID"], "restarts": os.environ.get("TORCHELASTIC_RESTART_COUNT")}
        Path(args.output_dir).parent.joinpath(f"rank{args.process_index}-{found['job']}.json").write_text(
            json.dumps(found)
        )


class Patience(TrainerCallback):
    """Waits after step 3 as long as a file stands beside the output folder."""

    def on_step_begin(self, args, state, control, **kwargs):
        while state.global_step >= 3 and Path(args.output_dir).parent.joinpath("wait").exists():
            time.sleep(0.2)
