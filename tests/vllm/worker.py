"""What each of two ranks runs; started by torchrun from test_two_ranks.py. Writes one file per rank."""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from accelerate import PartialState

from rollout_sft.ranks.distributed import is_sharded, leave_together
from rollout_sft.rollouts.endings import make_endings
from tests.tiny import shard
from tests.vllm.conftest import by_hf, compare_every_window, make_model, make_trainer, requests


def training(folder, overrides):
    """Three windows, every rank's rollouts compared with Hugging Face's."""
    model = shard(make_model(), folder) if overrides.pop("sharded", False) else None
    trainer = make_trainer(folder, model=model, **overrides)
    compared = compare_every_window(trainer)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    mine = requests()[dist.get_rank() :]
    answers = trainer.generation.evaluation.generate(mine)
    endings = make_endings(trainer.args.end_rollouts, trainer.target_builder)
    longest = trainer.args.eval_decoding.max_new_tokens
    return {
        "sharded": is_sharded(trainer.model),
        "compared": compared,
        "evaluated": [before["eval_rollout/truncation"], after["eval_rollout/truncation"]],
        "after": answers == by_hf(trainer.model, mine, max_new_tokens=longest, endings=endings),
        "ended": sum(rollout.ended for rollout in answers),
        "shared": trainer.generation._engine.version,
    }


def failure(folder, overrides):
    """What each rank raises when there is no server, or when one rank alone has a bad sample or a prompt too long."""
    bad = overrides.pop("bad_sample", None)
    trainer = make_trainer(folder, **overrides)
    if bad and dist.get_rank() == 1:
        samples = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
        samples[9]["prompt_ids"] = {"missing": None, "long": [7] * 1000}[bad]
        trainer.train_dataset = samples
    try:
        trainer.train()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": None}


if __name__ == "__main__":
    work, folder, overrides = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    PartialState(cpu=True)  # opens the process group
    result = {"training": training, "failure": failure}[work](folder, overrides)
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(result))
    leave_together()
