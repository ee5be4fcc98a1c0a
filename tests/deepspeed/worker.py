"""What each of two ranks runs: several trainings one after the other, since a start costs more than a training.

`python -m tests.deepspeed.worker FOLDER CELLS`: FOLDER holds `weights/FAMILY` and `cells.json`, a mapping from names to
the keywords of [`train`]. Writes `rank0.json` and `rank1.json`, and the weights after a training to `NAME/weights.pt`.
"""

import gc
import json
import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, TrainerCallback, set_seed

from examples.digits.data import DigitsDataset
from examples.digits.tokenizer import build_digits_tokenizer
from rollout_sft import RolloutSFTTrainer
from rollout_sft.ranks.distributed import leave_together
from rollout_sft.ranks.zero3 import is_partitioned
from tests.deepspeed import without_compiler  # noqa: F401
from tests.deepspeed.faults import FAULTS
from tests.tiny import tiny_arguments

ARGUMENTS = {
    "global_max_length": 700,
    "decoding": {"max_new_tokens": 12},
    "max_steps": 4,
    "optim": "sgd",  # unlike Adam's, its steps tell a wrong scale of the gradient
    "learning_rate": 0.2,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 1.0,
    "logging_steps": 1,
    "per_device_eval_batch_size": 1,
}


class CountForwards(TrainerCallback):
    """Counts forwards a step: ranks that run other numbers than each other would wait forever under stage 3."""

    def __init__(self, model):
        self.steps, self._now = [], 0
        model.register_forward_pre_hook(self._count)

    def _count(self, model, _):
        self._now += torch.is_grad_enabled()

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(self._now)
        self._now = 0


def train(folder, *, stage=None, zero=None, family="qwen3", lora=False, evaluate=False, fault=None, **given):
    """Trains four steps; rank 1 has a single segment a window."""
    folder.mkdir(exist_ok=True)
    if stage is not None:
        given["deepspeed"] = {**zero, "zero_optimization": {**zero["zero_optimization"], "stage": stage}}
    args = tiny_arguments(folder, **{**ARGUMENTS, **given})
    model = AutoModelForCausalLM.from_pretrained(folder.parent / "weights" / family, dtype=torch.float32)
    partitioned = is_partitioned(model)
    if lora:
        set_seed(0)
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights="gaussian"))
    trainer = RolloutSFTTrainer(
        model=model,
        args=args,
        processing_class=build_digits_tokenizer(),
        train_dataset=DigitsDataset("train", 90, seed=5, max_digits=5),
        eval_dataset=DigitsDataset("eval", 4, seed=1, max_digits=3),
    )
    forwards = CountForwards(trainer.accelerator.unwrap_model(trainer.model))
    trainer.add_callback(forwards)
    packs, trained, schedule = [], [], trainer.schedule.schedule

    def uneven(micro_batches, micro_steps):
        if args.process_index == 1:
            micro_batches = [micro_batches[0][:1], *([] for _ in micro_batches[1:])]
        window = schedule(micro_batches, micro_steps)
        packs.append([[len(s.input_ids) for s in pack.segments] for pack in window.packs])
        trained.extend([s.sample_id, s.input_ids.tolist()] for pack in window.packs for s in pack.segments)
        return window

    trainer.schedule.schedule = uneven
    before = trainer.evaluate() if evaluate else {}
    error, version = None, trainer.generation.weights.version
    try:
        with FAULTS[fault](trainer):
            trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    except Exception as caught:
        traceback.print_exc()
        error = f"{type(caught).__name__}: {caught}"
    after = trainer.evaluate() if evaluate else {}
    weights = whole(trainer.accelerator.unwrap_model(trainer.model))
    if args.process_index == 0:
        torch.save(weights, folder / "weights.pt")
    return {
        "engine": type(trainer.model_wrapped).__name__,
        "partitioned": partitioned,
        "error": error,
        "packs": packs,
        "forwards": forwards.steps,
        "trained": trained,
        "log": [line for line in trainer.state.log_history if "loss" in line],
        "scores": [{k: v for k, v in metrics.items() if "/" in k} for metrics in (before, after)],
        "versions": trainer.generation.weights.version - version,
    }


def whole(model):
    parameters = dict(model.named_parameters())
    if any(hasattr(p, "ds_id") for p in parameters.values()):
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(parameters.values())):
            return {name: p.detach().clone() for name, p in parameters.items()}
    return {name: p.detach().clone() for name, p in parameters.items()}


def main():
    folder = Path(sys.argv[1])
    results = {}
    for name, cell in json.loads((folder / "cells.json").read_text()).items():
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)  # accelerate sets it for the rest of the process
        gc.collect()  # transformers asks a weak reference whether stage 3 is on
        try:
            results[name] = train(folder / name, **cell)
        except Exception as error:
            traceback.print_exc()
            results[name] = {"error": f"{type(error).__name__}: {error}"}
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(results))
    leave_together()


if __name__ == "__main__":
    main()
