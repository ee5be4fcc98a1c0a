"""What each rank runs for the tests of waves: ten steps in one wave and in four, a failure, and ended rollouts."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import Qwen3ForCausalLM, set_seed

from examples.digits.tokenizer import build_digits_tokenizer
from rollout_sft import RolloutRequest
from rollout_sft.config.decoding import Decoding
from rollout_sft.ranks.distributed import is_sharded, leave_together
from rollout_sft.rollouts.endings import Endings
from rollout_sft.rollouts.hf import HFBackend
from tests.rollout_sft.rollouts.test_hf_endings import Rare
from tests.tiny import shard, tiny_config
from tests.waves import Echo, Prompts, ScriptedBackend, lines, run, train, wave_trainer, weights


class Uneven(Echo):
    """Rank 1 trains every third token of a response, so its packs fill later than those of rank 0."""

    def __init__(self):
        super().__init__(shorter=3 if int(os.environ["RANK"]) == 1 else 1)


def compare(folder, *, sharded, samples=400, waves=4, **more):
    one, some = (
        train(folder / f"{sharded}{samples}{k}", k, sharded=sharded, builder=Uneven(), data=Prompts(samples), **more)
        for k in (1, waves)
    )
    pairs = zip(some.catch.gradients, one.catch.gradients, strict=True)
    return {
        "gradients": [float((a - b).norm() / b.norm()) for a, b in pairs],
        "weights": float((weights(some.model) - weights(one.model)).abs().max()),
        "hashes": some.catch.hashes,
        "micro_steps": some.catch.micro_steps,
        "early": [line["packing/early_packs"] for line in lines(some)],
        "losses": [[line["loss"] for line in lines(trainer)] for trainer in (some, one)],
        "waits": some.backend.waits,
    }


def fails_on_one_rank(folder):
    trainer = wave_trainer(folder, 4, backend=ScriptedBackend(fails_in_wave=2 if dist.get_rank() == 1 else None))
    try:
        run(trainer)
    except Exception as error:
        return f"{type(error).__name__}: {error}", [stream.closed for stream in trainer.backend.streams]
    return "no error", []


def ended_rollouts(folder):
    """Each rank's rollouts of a whole model, and of the same one sharded; rank 1 has a chunk less to generate."""
    set_seed(0)
    whole = Qwen3ForCausalLM(tiny_config(build_digits_tokenizer())).to(torch.float64)
    parts = shard(whole, folder)
    endings = Endings(Rare(), looping=True)
    first = 10 * dist.get_rank()
    asked = [RolloutRequest(prompt_ids=[20 + i, 30], seed=first + i) for i in range(5 - 2 * dist.get_rank())]

    def generate(model, endings):
        decoding = Decoding(max_new_tokens=90, temperature=1.0)
        backend = HFBackend(lambda: model, decoding, eos_token_ids=[1], pad_token_id=0, batch_size=2, endings=endings)
        return backend.generate(asked)

    full, expected, found = generate(whole, None), generate(whole, endings), generate(parts, endings)
    return {
        "sharded": is_sharded(parts),
        "ended": [rollout.ended for rollout in found],
        "lengths": [len(rollout.response_ids) for rollout in found],
        "by the rule": found == [endings.cut(rollout) for rollout in full],
        "same": found == expected,
    }


def main(folder):
    found = {
        "ddp": compare(folder, sharded=False),
        "fsdp2": compare(folder, sharded=True),
        "short": compare(folder, sharded=False, samples=44, max_steps=-1, num_train_epochs=1),
        "ended": ended_rollouts(folder),
        "failed": fails_on_one_rank(folder / "failed"),
    }
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
