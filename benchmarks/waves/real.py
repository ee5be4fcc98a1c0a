"""`python -m benchmarks.waves.real`: one wave against several with a real vLLM server, in seconds per step.

The server runs on one core and the trainer on another. Responses are sampled from a random model, so their lengths are
geometric: the longest of a window is about four times the mean. Prompts are a little longer than responses, as in the
real log of docs/step_time.md. Every step trains the responses themselves, and with the defaults takes about as long for
it as for the rollouts; `--hidden` changes that. All runs train on the same rollouts, which is checked. Run it on an
idle machine (three minutes), in an environment with vLLM.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, set_seed

from benchmarks.served import server
from benchmarks.small_runs import ON_CPU
from examples.digits.tokenizer import build_digits_tokenizer
from rollout_sft import RolloutSFTConfig, RolloutSFTTrainer
from rollout_sft.inputs.segment import Segment
from rollout_sft.targets.base import Target

CAP, PROMPT, PACKING_LENGTH = 640, 192, 1024
TRAINER_CORE, SERVER_CORE = 0, 1


class Responses:
    """Trains every token of the response."""

    def build(self, sample: Any, rollout: Any) -> Target:
        ids, prompt = [*sample["prompt_ids"], *rollout.response_ids, 1], len(sample["prompt_ids"])
        weights = [0.0] * (prompt - 1) + [1.0] * (len(ids) - prompt) + [0.0]
        segment = Segment.from_lists(ids, [*ids[1:], 0], weights, sample_id=sample["id"])
        return Target(segment=segment, counters={})

    build_reference = score = build


def make_model(tokenizer: Any, hidden: int) -> Qwen3ForCausalLM:
    set_seed(0)
    shape = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": 4, "head_dim": 32}
    heads = {"num_attention_heads": hidden // 32, "num_key_value_heads": hidden // 32}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer), max_position_embeddings=2048, initializer_range=0.1, **shape, **heads, **ends
        )
    )


def train(folder: Path, url: str, waves: int, arguments: argparse.Namespace) -> tuple[list[dict[str, float]], Any]:
    """Returns the log of a run and its weights."""
    tokenizer = build_digits_tokenizer()
    per_micro_batch = 2
    config = RolloutSFTConfig(
        output_dir=str(folder / f"waves{waves}"),
        global_max_length=PACKING_LENGTH,
        per_device_train_batch_size=per_micro_batch,
        gradient_accumulation_steps=arguments.samples // per_micro_batch,
        max_steps=arguments.steps,
        learning_rate=1e-6,
        post_rollout_pack_scope="window",
        idle_micro_steps="skip",
        check_isolation=False,
        rollout_backend="vllm",
        vllm={"mode": "server", "base_url": url},
        decoding={"max_new_tokens": CAP, "temperature": 1.0},
        rollout_waves=waves,
        **ON_CPU,
    )
    rng = random.Random(0)
    prompts = [
        {"id": str(i), "prompt_ids": [rng.randrange(20, 60) for _ in range(PROMPT)]}
        for i in range(arguments.samples * arguments.steps)
    ]
    trainer = RolloutSFTTrainer(
        model=make_model(tokenizer, arguments.hidden),
        args=config,
        processing_class=tokenizer,
        train_dataset=prompts,
        target_builder=Responses(),
    )
    trainer.train()
    trainer.generation.close()
    weights = torch.cat([p.detach().reshape(-1) for p in trainer.model.parameters()])
    return [entry for entry in trainer.state.log_history if "loss" in entry], weights


def main() -> None:
    """Prints a table: for each number of waves, the median over the steps after the second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--waves", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--hidden", type=int, default=256)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {TRAINER_CORE})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = build_digits_tokenizer()
        make_model(tokenizer, arguments.hidden).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        with server(folder, max_model_len=PROMPT + CAP, core=SERVER_CORE) as url:
            runs = {waves: train(folder, url, waves, arguments) for waves in arguments.waves}
    first = runs[arguments.waves[0]]
    print("| waves | s per step | rollout | train | packs | of them early | speed | weights apart |")
    for waves, (log, weights) in runs.items():
        same = [a["rollout/prefill_tokens"] == b["rollout/prefill_tokens"] for a, b in zip(log, first[0], strict=True)]
        assert all(same)
        names = ("time/step_s", "time/rollout_s", "time/train_s", "packing/non_empty_packs", "packing/early_packs")
        step, rollout, training, packs, early = (
            statistics.median(line.get(name, 0.0) for line in log[2:]) for name in names
        )
        base = statistics.median(line["time/step_s"] for line in first[0][2:])
        apart = float((weights - first[1]).abs().max())
        cells = (f"{step:.2f}", f"{rollout:.2f}", f"{training:.2f}", f"{packs:.0f}", f"{early:.0f}")
        print(f"| {waves} | {' | '.join(cells)} | {base / step:.2f} | {apart:.1e} |")


if __name__ == "__main__":
    main()
