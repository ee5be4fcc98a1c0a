"""One rank of a fault run; started by `runs.py`, once with a fault and once more to resume.

Trains six steps of two epochs on two ranks, a checkpoint every two steps, only the last one kept. Beside the run's
own files each rank writes

    hashes_rank0.txt    a line `step hash` of all parameters after every optimizer step
    answers_rank0.jsonl the rollouts of every step
    pid_rank0           its process
    error_rank0.txt     the exception that ended training
    fault.json          what was done, and when, by the rank that did it
    end_rank0.pt        weights, optimizer, log and waiting segments, when training came to its end
"""

import hashlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch
from transformers import Qwen3ForCausalLM, TrainerCallback, set_seed

from examples.digits.data import DigitsDataset
from examples.digits.tokenizer import build_digits_tokenizer
from rollout_sft import RolloutSFTConfig, RolloutSFTTrainer
from rollout_sft.checkpoint.manifest import last_finished_checkpoint
from rollout_sft.ranks.distributed import leave_together
from tests.faults.faults import Fault, plant
from tests.tiny import QUIET, tiny_config


class HashParameters(TrainerCallback):
    """Every optimizer step leaves a hash of all parameters of this rank."""

    def __init__(self, folder):
        self.folder = folder

    def on_step_end(self, args, state, control, model=None, **kwargs):
        digest = hashlib.sha256()
        for parameter in model.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        with (self.folder / f"hashes_rank{args.process_index}.txt").open("a") as file:
            file.write(f"{state.global_step} {digest.hexdigest()}\n")


def record_answers(trainer, path):
    """Notes what the backend generates in which step."""
    generate = trainer.generation.train.generate

    def recording(requests):
        rollouts = generate(requests)
        with path.open("a") as file:
            file.write(json.dumps([trainer.state.global_step, [r.response_ids for r in rollouts]]) + "\n")
        return rollouts

    trainer.generation.train.generate = recording


def build(folder, scope):
    tokenizer = build_digits_tokenizer()
    args = RolloutSFTConfig(
        output_dir=str(folder),
        global_max_length=130 if scope == "micro" else 260,
        post_rollout_pack_scope=scope,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        num_train_epochs=2,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=1,
        learning_rate=1e-2,
        decoding={"max_new_tokens": 12, "temperature": 1.0},
        **QUIET,
    )
    set_seed(0)
    # Dropout, so that a wrong generator state after a resume shows.
    shape = tiny_config(tokenizer, attention_dropout=0.1, initializer_range=0.02)
    trainer = RolloutSFTTrainer(
        model=Qwen3ForCausalLM(shape),
        args=args,
        processing_class=tokenizer,
        train_dataset=DigitsDataset("train", 34, seed=5, max_digits=5),
        callbacks=[HashParameters(folder)],
    )
    record_answers(trainer, folder / f"answers_rank{args.process_index}.jsonl")
    return trainer


def main(folder, scope, fault):
    trainer = build(folder, scope)
    rank = trainer.args.process_index
    (folder / f"pid_rank{rank}").write_text(str(os.getpid()))
    if fault is not None:
        plant(trainer, fault, folder)
    try:
        trainer.train(resume_from_checkpoint=last_finished_checkpoint(folder))
    except Exception as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        words = {"type": type(error).__name__, "message": str(error), "time": time.time()}
        (folder / f"error_rank{rank}.txt").write_text(json.dumps(words))
        raise
    torch.save(
        {
            "model": trainer.model.state_dict(),
            "optimizer": trainer.optimizer.state_dict()["state"],
            "log": trainer.state.log_history,
            "left": [s.input_ids for s in trainer.schedule.waiting],
        },
        folder / f"end_rank{rank}.pt",
    )


if __name__ == "__main__":
    # A job in a shell's background ignores interrupts, and so would the processes that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    settings = json.loads(sys.argv[2])
    main(Path(sys.argv[1]), settings["scope"], Fault(**settings["fault"]) if settings["fault"] else None)
    leave_together()
