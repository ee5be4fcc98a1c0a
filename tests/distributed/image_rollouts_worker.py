"""What each of two ranks rolls out with a sharded image model; started by test_two_ranks_images.py."""

import copy
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState

from rollout_sft import RolloutRequest
from rollout_sft.config.decoding import Decoding
from rollout_sft.ranks.distributed import is_sharded, leave_together
from rollout_sft.rollouts.hf import HFBackend
from tests.image_runs import adapter_of, make_samples
from tests.tiny import shard
from tests.tiny_images import image_model

PROMPTS = {"images": [[(16, 24)], [(40, 8), (9, 30)], [], [(61, 45)], []], "text": [[], [], []], "nothing": []}


def rollouts(folder, kinds):
    """Says whether this rank's responses are those of the plain model, one after the other."""
    model = image_model("qwen3_vl", torch.float32).eval()
    inputs, reference = adapter_of("qwen3_vl", model), copy.deepcopy(model)
    asked = [
        RolloutRequest(prompt_ids=sample["prompt_ids"], seed=i, images=sample["images"])
        for i, sample in enumerate(make_samples(inputs, PROMPTS[kinds[dist.get_rank()]]))
    ]
    model = shard(model, folder)

    def backend(model, batch_size):
        decoding = Decoding(max_new_tokens=8)
        ends = {"eos_token_ids": [1], "pad_token_id": 0}
        return HFBackend(lambda: model, decoding, **ends, batch_size=batch_size, inputs=inputs)

    answers = backend(model, 2).generate(asked)
    return {
        "sharded": is_sharded(model),
        "answers": len(answers),
        "same": answers == backend(reference, 1).generate(asked),
    }


if __name__ == "__main__":
    PartialState(cpu=True)  # opens the process group
    folder, kinds = Path(sys.argv[1]), json.loads(sys.argv[2])
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps([rollouts(folder, pair) for pair in kinds]))
    leave_together()
