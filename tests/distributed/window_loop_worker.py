"""Runs the examples for other trainers on two ranks, and windows that `backward_window` refuses."""

import json
import os
import sys
from pathlib import Path

from torch import distributed

from examples import grpo_loop, plain_loop, stock_trainer
from examples.small import make_model, make_samples
from packsched import PackingError
from packsched.torch import PackCollator, backward_window


def refused(batches):
    model = make_model()
    try:
        backward_window(model, batches, lambda batch: model(**batch, num_items_in_batch=1).loss)
    except PackingError as error:
        return str(error)
    return "not refused"


def main(folder):
    rank = int(os.environ["RANK"])
    collate = PackCollator()
    found = {"plain": plain_loop.main(), "grpo": grpo_loop.main(steps=1)}
    packs = [collate([sample]) for sample in make_samples(3)]
    found["too few"] = refused(packs if rank == 0 else [*packs[:1], collate([])])
    found["nothing"] = refused([collate([])])
    found["stock"] = stock_trainer.main()
    Path(folder, f"rank{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
