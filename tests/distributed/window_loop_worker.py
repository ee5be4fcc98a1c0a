"""Runs the examples for other trainers on two ranks, and windows that `backward_window` refuses."""

import json
import os
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from examples import grpo_loop, plain_loop, stock_trainer
from examples.small import difference, make_model, make_samples, unpacked_gradient
from packsched import PackingError
from packsched.torch import PackCollator, backward_window


def refused(batches):
    model = make_model()
    try:
        backward_window(model, batches, lambda batch: model(**batch, num_items_in_batch=1).loss)
    except PackingError as error:
        return str(error)
    return "not refused"


def sharded(rank):
    """The difference of the gradient under FSDP2, where one rank runs two packs and the other one and a dummy."""
    samples, model, collate = make_samples(16), make_model(), PackCollator()
    expected = unpacked_gradient(model, samples)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    packs = [collate(samples[:6]), collate(samples[6:12])] if rank == 0 else [collate(samples[12:]), collate([])]
    backward_window(model, packs, lambda batch: model(**batch, num_items_in_batch=1).loss)
    gradient = torch.cat([p.grad.full_tensor().flatten() for p in model.parameters()])
    return difference(gradient, expected)


def main(folder):
    rank = int(os.environ["RANK"])
    collate = PackCollator()
    found = {"plain": plain_loop.main(), "grpo": grpo_loop.main(steps=1)}
    packs = [collate([sample]) for sample in make_samples(3)]
    found["too few"] = refused(packs if rank == 0 else [*packs[:1], collate([])])
    found["nothing"] = refused([collate([])])
    found["sharded"] = sharded(rank)
    found["stock"] = stock_trainer.main()
    Path(folder, f"rank{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
