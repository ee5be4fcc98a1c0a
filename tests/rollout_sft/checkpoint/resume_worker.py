"""Trains six steps with a checkpoint every two and dies where it is told to; started by test_resume.py."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from transformers import Qwen3ForCausalLM, TrainerCallback, set_seed

from examples.digits.data import DigitsDataset
from examples.digits.tokenizer import build_digits_tokenizer
from rollout_sft import RolloutSFTConfig, RolloutSFTTrainer
from tests.tiny import QUIET, tiny_config


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class DieAfterStep(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            die()


def die_in_save(number):
    """Dies inside the `number`-th torch.save: a checkpoint is then written in part."""
    original, count = torch.save, [0]

    def save(obj, target, *args, **kwargs):
        count[0] += 1
        if count[0] == number:
            Path(str(target)).write_bytes(b"half")
            die()
        return original(obj, target, *args, **kwargs)

    torch.save = save


def main(folder, scope, kill_step, kill_save):
    tokenizer = build_digits_tokenizer()
    args = RolloutSFTConfig(
        output_dir=folder,
        global_max_length=120 if scope == "micro" else 240,
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
        train_dataset=DigitsDataset("train", 18, seed=5, max_digits=5),
        callbacks=[DieAfterStep(kill_step)],
    )
    answers = Path(folder) / "answers.jsonl"
    generate = trainer.generation.train.generate

    def record(requests):
        rollouts = generate(requests)
        answers.parent.mkdir(parents=True, exist_ok=True)
        with answers.open("a") as file:
            file.write(json.dumps([trainer.state.global_step, [r.response_ids for r in rollouts]]) + "\n")
        return rollouts

    trainer.generation.train.generate = record
    if kill_save:
        die_in_save(kill_save)
    from rollout_sft.checkpoint.manifest import last_finished_checkpoint

    trainer.train(resume_from_checkpoint=last_finished_checkpoint(folder))
    torch.save(
        {
            "model": trainer.model.state_dict(),
            "optimizer": trainer.optimizer.state_dict()["state"],
            "log": trainer.state.log_history,
            "left": trainer.schedule.waiting and [s.input_ids for s in trainer.schedule.waiting],
        },
        Path(folder) / "end.pt",
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
