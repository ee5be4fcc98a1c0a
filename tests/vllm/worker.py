"""What each of two ranks runs; started by torchrun from test_two_ranks.py. Writes one file per rank."""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from tests.vllm.conftest import by_hf, compare_every_window, make_trainer, requests


def training(folder, overrides):
    """Three windows, every rank's rollouts compared with Hugging Face's."""
    trainer = make_trainer(folder, **overrides)
    compared = compare_every_window(trainer)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    mine = requests()[dist.get_rank() :]
    answers = trainer.generation.evaluation.generate(mine)
    return {
        "compared": compared,
        "evaluated": [before["eval_rollout/truncation"], after["eval_rollout/truncation"]],
        "after": answers == by_hf(trainer.model, mine, max_new_tokens=12),
        "shared": trainer.generation._engine.version,
    }


def failure(folder, overrides):
    """What each rank raises when there is no server."""
    trainer = make_trainer(folder, **overrides)
    try:
        trainer.train()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": None}


if __name__ == "__main__":
    work, folder, overrides = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    result = {"training": training, "failure": failure}[work](folder, overrides)
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(result))
    dist.barrier()  # gloo aborts a rank whose peer has already gone
    dist.destroy_process_group()
