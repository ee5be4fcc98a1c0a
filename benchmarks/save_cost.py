"""`python -m benchmarks.save_cost`: what the checks cost a checkpoint and a step, beside the plain Trainer.

One process takes turns: a save by `Trainer`, a save by `RolloutSFTTrainer` of the same model, optimizer and folder, in
an order that is drawn anew for every pair; then one step with the check of the gradient's norm and one without it, on
the same window. A pair's difference is what the checks cost; the median over the pairs is reported, and the share of
the plain median. Goals: 5 % of a save and 1 % of a step. Writes `benchmarks/results/save_cost.json`.
"""

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainerCallback, set_seed
from transformers.utils.logging import disable_progress_bar

from benchmarks.small_runs import ON_CPU, OfLength
from examples.digits.tokenizer import build_digits_tokenizer
from rollout_sft import RolloutSFTConfig, RolloutSFTTrainer
from rollout_sft.step.non_finite import FiniteTrainer

OUTPUT = Path(__file__).parent / "results" / "save_cost.json"
SHAPES = {
    "small": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4},
    "large": {"hidden_size": 320, "intermediate_size": 1024, "num_hidden_layers": 6},
}
"""Checkpoints of 8 MB and of about 100 MB: weights in float32 and the two moments of AdamW."""


class Windows(torch.utils.data.Dataset):
    """Gives the same 16 lengths to every window."""

    def __len__(self):
        return 100_000

    def __getitem__(self, index):
        return {"id": str(index), "prompt_ids": [5], "length": 60 + 10 * (index % 16)}


class TakeTurns(TrainerCallback):
    """Checks the norm of every second gradient only, and times every step."""

    def __init__(self):
        self.times = {True: [], False: []}
        self.checked = True

    def on_step_begin(self, args, state, control, **kwargs):
        self.checked = state.global_step % 2 == 0
        FiniteTrainer._get_grad_norm = CHECK if self.checked else Trainer._get_grad_norm
        self.began = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        self.times[self.checked].append(time.process_time() - self.began)


CHECK = FiniteTrainer._get_grad_norm


def make_trainer(folder, shape, steps):
    tokenizer = build_digits_tokenizer()
    set_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=shape["hidden_size"] // 4,
        tie_word_embeddings=True,
        **shape,
    )
    args = RolloutSFTConfig(
        output_dir=str(folder),
        global_max_length=1024,
        post_rollout_pack_scope="window",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        reference_fraction=1.0,
        max_steps=steps,
        train_sampling_strategy="sequential",
        save_total_limit=1,
        **ON_CPU,
    )
    return RolloutSFTTrainer(
        model=Qwen3ForCausalLM(config),
        args=args,
        processing_class=tokenizer,
        train_dataset=Windows(),
        target_builder=OfLength(),
    )


def save(trainer, kind):
    """Saves with the methods of `kind`, and only those."""
    own = type(trainer)
    trainer.__class__ = kind
    try:
        trainer._save_checkpoint(trainer.model, None)
    finally:
        trainer.__class__ = own


def timed(work):
    before = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - before[0], time.process_time() - before[1]


def measure_saves(trainer, pairs):
    """Returns seconds on the clock and of the processor, for plain and checked saves, in pairs."""
    order = random.Random(0)
    kinds = {"plain": Trainer, "checked": type(trainer)}
    times = {kind: [] for kind in kinds}
    for pair in range(pairs + 2):
        for kind in order.sample(sorted(kinds), 2):
            trainer.state.global_step += 1
            spent = timed(lambda kind=kind: save(trainer, kinds[kind]))
            if pair >= 2:
                times[kind].append(spent)
    return times


def compare(plain, checked):
    """Returns medians in milliseconds and the share that the median difference of a pair is of the plain median."""
    difference = statistics.median(after - before for before, after in zip(plain, checked, strict=True))
    before = statistics.median(plain)
    return {
        "plain_ms": round(1000 * before, 2),
        "checked_ms": round(1000 * statistics.median(checked), 2),
        "difference_ms": round(1000 * difference, 2),
        "percent": round(100 * difference / before, 1),
        "pairs": len(plain),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=60, help="pairs of saves and steps of the small model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    results = {"machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, one thread"}
    for name, shape in SHAPES.items():
        pairs = arguments.pairs if name == "small" else arguments.pairs // 2
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(folder, shape, 2 * pairs + 2 if name == "small" else 2)
            turns = TakeTurns()
            trainer.add_callback(turns)
            trainer.train()
            saves = measure_saves(trainer, pairs)
            size = sum(path.stat().st_size for path in Path(folder).rglob("checkpoint-*/*"))
        results[name] = {
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "checkpoint_mb": round(size / 1e6, 1),
            "save_processor": compare(*([cpu for _, cpu in saves[kind]] for kind in ("plain", "checked"))),
            "save_clock": compare(*([clock for clock, _ in saves[kind]] for kind in ("plain", "checked"))),
        }
        if name == "small":
            results[name]["step_processor"] = compare(turns.times[False][1:], turns.times[True][1:])
        print(name, json.dumps(results[name], indent=1), flush=True)
    OUTPUT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
