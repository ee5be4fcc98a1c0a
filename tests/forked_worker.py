"""Prints what a process sees as it starts, and ends as it is told to; started by test_processes.py."""

import json
import os
import random
import sys
import time

LOADED = [name for name in ("torch", "transformers", "rollout_sft.trainer") if name in sys.modules]

if __name__ == "__main__":
    import numpy

    seen = {
        "loaded": LOADED,
        "group": os.getpgid(0),
        "rank": os.environ.get("RANK"),
        "numbers": [random.random(), numpy.random.rand()],  # noqa: NPY002
    }
    print(json.dumps(seen), flush=True)
    if sys.argv[1] == "raise":
        raise ValueError("as it was told to")
    if sys.argv[1] == "sleep":
        time.sleep(300)
