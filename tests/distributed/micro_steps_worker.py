"""What each of two ranks runs for the tests of idle and overfull micro-steps; see `worker.py`."""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from rollout_sft import RolloutSFTTrainer
from rollout_sft.ranks.distributed import leave_together
from tests.distributed.worker import gradient


def count_packs():
    """Tokens of every pack that this rank trains, and whether it was the synchronising one."""
    packs = []
    compute_loss = RolloutSFTTrainer.compute_loss

    def counting(self, model, inputs, *args, **kwargs):
        packs.append([inputs["input_ids"].numel(), self.accelerator.sync_gradients])
        return compute_loss(self, model, inputs, *args, **kwargs)

    RolloutSFTTrainer.compute_loss = counting
    return packs


if __name__ == "__main__":
    folder, overrides = Path(sys.argv[2]), json.loads(sys.argv[3])
    packs = count_packs()
    result = {**gradient(folder, overrides), "trained": packs}
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(result))
    leave_together()
