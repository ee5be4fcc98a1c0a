"""Whether memory grows with the optimizer steps: runs of 2,000 steps, each in a process of its own.

    python -m benchmarks.step_time.memory --trainer micro --steps 2000

At every tenth of the steps, after `gc.collect()`: the resident memory of the process (`/proc/self/statm`), the objects
that Python's collector tracks, and all blocks that Python's allocator has handed out. The Trainer keeps every line of
its log (`state.log_history`) for the checkpoint; the bytes and blocks of these lines are counted apart.

- `micro` and `window`: rollouts by `hf` from a tiny model of the digits, parsed, matched and packed; in scope `micro`
  segments wait in the carry buffer all the time.
- `plain Trainer`: the reference answers of the same samples, padded.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from benchmarks.step_time.timed import common_arguments, plain_trainer, rollout_trainer, tiny_model
from examples.digits.data import DigitsDataset
from examples.digits.tokenizer import build_digits_tokenizer
from rollout_sft import RolloutSFTTrainer
from rollout_sft.targets.objects.builder import ObjectsTargetBuilder

TRAINERS = ("plain Trainer", "micro", "window")
BATCH, MICRO_STEPS, SAMPLES = 2, 2, 256
PACKING_LENGTHS = {"micro": 200, "window": 400}
"""A micro-step of scope `micro` has 180 tokens on average, so that segments wait."""


class Watch(TrainerCallback):
    """Notes the memory at every tenth of the steps; a tenth of them warm up."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.points = trainer, []
        self.began = time.process_time()
        self.waiting: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if isinstance(self.trainer, RolloutSFTTrainer):
            self.waiting.append(len(self.trainer.schedule.waiting))
        if state.global_step % (state.max_steps // 10):
            return
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        log = state.log_history
        self.points.append(
            {
                "step": state.global_step,
                "resident": pages * os.sysconf("SC_PAGE_SIZE"),
                "tracked": len(gc.get_objects()),
                "blocks": sys.getallocatedblocks(),
                "log_bytes": sum(sys.getsizeof(held) for held in held_by(log)),
                "log_blocks": len(held_by(log)),
                "seconds": time.process_time() - self.began,
            }
        )


def held_by(log: list[dict[str, Any]]) -> list[object]:
    """Returns the lines of a log with their names and numbers, each object once."""
    parts = {id(part): part for line in log for part in (line, *line, *line.values())}
    return list(parts.values())


def make(name: str, steps: int) -> Trainer:
    """Makes the trainer of one run."""
    tokenizer = build_digits_tokenizer()
    data = DigitsDataset("train", SAMPLES, max_digits=8)
    arguments = common_arguments(batch_size=BATCH, micro_steps=MICRO_STEPS, steps=steps)
    model = tiny_model(len(tokenizer))
    if name == "plain Trainer":
        builder = ObjectsTargetBuilder(tokenizer=tokenizer)
        return plain_trainer(model, [builder.build_reference(sample).segment for sample in data], arguments)
    ours = {
        "global_max_length": PACKING_LENGTHS[name],
        "post_rollout_pack_scope": name,
        "decoding": {"max_new_tokens": 4},
        "on_infeasible": "extra_steps" if name == "window" else "raise",
        "packing_min_fill_ratio": 0.0,
        "rollout_batch_size": BATCH * MICRO_STEPS,
    }
    return rollout_trainer(model, tokenizer, data, {**arguments, **ours})


def measure(steps: int) -> list[dict[str, Any]]:
    """Runs each trainer in a process of its own, and returns what they print."""
    runs = []
    for name in TRAINERS:
        command = [sys.executable, "-m", "benchmarks.step_time.memory", "--trainer", name, "--steps", str(steps)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        runs.append(json.loads(printed.splitlines()[-1]))
        print(runs[-1], flush=True)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trainer", choices=TRAINERS, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    trainer = make(args.trainer, args.steps)
    watch = Watch(trainer)
    trainer.add_callback(watch)
    trainer.train()
    waiting = sum(watch.waiting) / len(watch.waiting) if watch.waiting else None
    print(json.dumps({"trainer": args.trainer, "waiting": waiting, "points": watch.points}))


if __name__ == "__main__":
    main()
