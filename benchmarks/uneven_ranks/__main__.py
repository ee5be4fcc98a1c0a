"""`torchrun --standalone --nproc_per_node 2 -m benchmarks.uneven_ranks`: scopes `window` and `global` in one run.

Lengths are log-normal, and those of rank 1 twice those of the others. The same data are trained in both scopes, in
alternation (window, global, window, global), on a CPU with one thread a rank. A rank's own seconds are the processor
time of its process between the end of the exchange and the optimizer step; waiting for another rank takes none.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import Qwen3Config, Qwen3ForCausalLM, TrainerCallback, set_seed

from benchmarks.small_runs import ON_CPU, OfLength
from examples.digits.tokenizer import build_digits_tokenizer
from rollout_sft import RolloutSFTConfig, RolloutSFTTrainer
from rollout_sft.ranks.distributed import leave_together

MICRO_STEPS, BATCH, LENGTH = 4, 4, 1024


class Samples(torch.utils.data.Dataset):
    """A length for each sample; those of rank 1 are twice as long on average."""

    def __init__(self, steps: int, ranks: int) -> None:
        rng = random.Random(0)
        number = steps * MICRO_STEPS * BATCH * ranks
        scale = [2 if index // BATCH % ranks == 1 else 1 for index in range(number)]
        self.lens = [max(8, min(LENGTH, int(130 * s * rng.lognormvariate(-0.18, 0.6)))) for s in scale]

    def __len__(self) -> int:
        return len(self.lens)

    def __getitem__(self, index: int) -> dict:
        return {"id": str(index), "prompt_ids": [5], "length": self.lens[index]}


class Clock(TrainerCallback):
    """Notes, for each step, when its window was ready and when its gradients were."""

    def __init__(self) -> None:
        self.own: list[float] = []
        self.wall: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.began = time.process_time(), time.perf_counter()

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.own.append(time.process_time() - self.began[0])
        self.wall.append(time.perf_counter() - self.began[1])


def train(scope: str, steps: int) -> dict:
    tokenizer = build_digits_tokenizer()
    shape = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 6}
    set_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=32, intermediate_size=512, vocab_size=len(tokenizer)))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = RolloutSFTTrainer(
            model=model,
            args=RolloutSFTConfig(
                output_dir=folder,
                global_max_length=LENGTH,
                per_device_train_batch_size=BATCH,
                gradient_accumulation_steps=MICRO_STEPS,
                max_steps=steps,
                reference_fraction=1.0,
                train_sampling_strategy="sequential",
                check_isolation=False,
                post_rollout_pack_scope=scope,
                pack_objective="cost",
                on_infeasible="extra_steps",
                **ON_CPU,
            ),
            processing_class=tokenizer,
            train_dataset=Samples(steps, dist.get_world_size() if dist.is_initialized() else 1),
            target_builder=OfLength(),
            callbacks=[clock],
        )
        trainer.train()
    return {"own": clock.own, "wall": clock.wall, "log": trainer.state.log_history[:-1]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.uneven_ranks", description=__doc__)
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of each of the four trainings")
    parser.add_argument("--write", type=Path, help="a file for the numbers, as JSON")
    options = parser.parse_args()
    if int(os.environ.get("WORLD_SIZE", 1)) < 2:
        parser.error("it compares ranks: torchrun --standalone --nproc_per_node 2 -m benchmarks.uneven_ranks")
    torch.set_num_threads(1)
    runs = [(scope, train(scope, options.steps)) for scope in ("window", "global", "window", "global")]
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, runs)
    if dist.get_rank() == 0:
        numbers = {}
        for scope in ("window", "global"):
            ranks = [[run for name, run in of_rank if name == scope] for of_rank in everyone]
            # The first step of a training makes buffers that later ones reuse.
            own = [[t for run in rank for t in run["own"][1:]] for rank in ranks]
            wall = [t for run in ranks[0] for t in run["wall"][1:]]
            lines = [line for run in ranks[0] for line in run["log"][1:]]
            numbers[scope] = {
                "step_s": statistics.median(wall),
                "own_s": [statistics.median(rank) for rank in own],
                "straggler": statistics.median(max(s) * len(s) / sum(s) for s in zip(*own, strict=True)),
                **{
                    name: statistics.median(line[name] for line in lines if name in line)
                    for name in (*lines[0], "balance/predicted_over_measured", "balance/fitted_pair_over_token")
                    if name.startswith(("balance/", "time/")) and any(name in line for line in lines)
                },
            }
        text = json.dumps(numbers, indent=2)
        print(text)
        if options.write:
            options.write.write_text(text + "\n")
    leave_together()


if __name__ == "__main__":
    main()
