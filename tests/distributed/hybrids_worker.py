"""What each of two ranks runs for the tests of hybrid models: several windows in one start; see `worker.py`."""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from rollout_sft.ranks.distributed import leave_together
from tests.distributed.worker import gradient
from tests.hybrids import float64_throughout

if __name__ == "__main__":
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    results = {}
    for name, overrides in cases.items():
        (folder / name).mkdir(exist_ok=True)
        with float64_throughout():
            results[name] = gradient(folder / name, overrides)
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(results))
    leave_together()
