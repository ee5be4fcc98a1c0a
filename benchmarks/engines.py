"""`python -m benchmarks.engines --model runs/quickstart/format`: the same rollouts by `hf` and by vLLM, in seconds.

Trains the second stage of the quickstart once with each backend, greedily, from the model that its first stage wrote
(`make quickstart`), and checks that all runs end with the same weights. Run it on an idle machine, in the environment
of `make test-vllm` (three minutes).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.served import server
from benchmarks.small_runs import ON_CPU
from examples.digits.data import DigitsDataset
from examples.digits.tokenizer import build_digits_tokenizer
from rollout_sft import RolloutSFTConfig, RolloutSFTTrainer
from rollout_sft.config.decoding import Decoding

WINDOW = 16
ENGINES = {"hf": "`hf`", "colocate": "`vllm`, colocate", "server": "`vllm`, server"}


@contextmanager
def settings(engine: str, model: Path) -> Iterator[dict[str, Any]]:
    """Gives the settings of a backend, while its server runs."""
    if engine == "hf":
        yield {"rollout_backend": "hf"}
    elif engine == "colocate":
        arguments = {"enforce_eager": True, "engine_args": {"kv_cache_memory_bytes": 256 << 20}}
        yield {"rollout_backend": "vllm", "vllm": arguments}
    else:
        with server(model, max_model_len=1024) as url:
            yield {"rollout_backend": "vllm", "vllm": {"mode": "server", "base_url": url}}


def train(engine: str, model: Path, folder: Path, windows: int) -> tuple[list[dict[str, float]], torch.Tensor]:
    """Returns the log of a run and its weights."""
    with settings(engine, model) as backend:
        config = RolloutSFTConfig(
            output_dir=str(folder / engine),
            global_max_length=512,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=WINDOW // 2,
            max_steps=windows,
            learning_rate=4e-4,
            adam_beta2=0.98,
            weight_decay=0.01,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": 0.05},
            warmup_steps=10,
            train_sampling_strategy="sequential",
            post_rollout_pack_scope="window",
            idle_micro_steps="skip",
            prefix_supervision="expert",
            decoding=Decoding(max_new_tokens=192),
            logging_steps=1,
            **ON_CPU,
            **backend,
        )
        trainer = RolloutSFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            args=config,
            processing_class=build_digits_tokenizer(),
            train_dataset=DigitsDataset("train", windows * WINDOW, seed=3, max_digits=10),
        )
        trainer.train()
        trainer.generation.close()
    assert trainer.model is not None
    weights = torch.cat([p.detach().reshape(-1) for p in trainer.model.parameters()])
    return [entry for entry in trainer.state.log_history if "loss" in entry], weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=100)
    parser.add_argument("--engines", choices=list(ENGINES), nargs="+", default=list(ENGINES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        runs = {engine: train(engine, arguments.model, Path(name), arguments.windows) for engine in arguments.engines}
    _, first = runs[arguments.engines[0]]
    print(f"| {arguments.windows} windows | {' | '.join(ENGINES[engine] for engine in runs)} |")
    print(f"|---|{'--:|' * len(runs)}")
    logs = [log for log, _ in runs.values()]
    print_row("rollouts of a window, median seconds", [f"{median(log, 'time/rollout_s'):.3f}" for log in logs])
    print_row("weight sync, median seconds", [f"{median(log, 'time/weight_sync_s'):.3f}" for log in logs])
    print_row("both, all windows, seconds", [f"{total(log):.1f}" for log in logs])
    tokens = [statistics.mean(line["rollout/new_tokens_mean"] for line in log) for log in logs]
    print_row("new tokens per window", [f"{WINDOW * mean:.0f}" for mean in tokens])
    equal = ["the same bits" if torch.equal(weights, first) else "DIFFERENT" for _, weights in runs.values()]
    print_row("weights at the end", equal)


def print_row(title: str, cells: list[str]) -> None:
    print(f"| {title} | {' | '.join(cells)} |")


def median(log: list[dict[str, float]], name: str) -> float:
    return statistics.median(line.get(name, 0.0) for line in log)


def total(log: list[dict[str, float]]) -> float:
    return sum(line.get(name, 0.0) for line in log for name in ("time/rollout_s", "time/weight_sync_s"))


if __name__ == "__main__":
    main()
