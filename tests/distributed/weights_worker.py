"""Resumes runs of several families on two ranks, and breaks weights on one of them; started by test_weights.py."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from transformers.distributed import DistributedConfig

from rollout_sft.checkpoint import resume
from rollout_sft.model.weights import compare_weights
from rollout_sft.ranks.distributed import leave_together
from tests.distributed.shared_failures_worker import error_of
from tests.distributed.worker import FSDP2
from tests.resumed import difference, make_trainer, tiny_model, with_adapter


def ddp(folder, family):
    return difference(family, folder)


def fsdp2(folder, family):
    """Sharded by accelerate; a resume takes the file that accelerate writes."""
    return difference(family, folder, **FSDP2)


def adapter(folder, family):
    return difference(family, folder, with_adapter)


def stage(folder, family):
    """A model that FSDP2 shards while it is loaded is saved at the end of a stage, and the next one loads it."""
    model = tiny_model(family, 0)
    if dist.get_rank() == 0:
        model.save_pretrained(folder / "start")
    dist.barrier()
    parts = DistributedConfig(fsdp_size=dist.get_world_size())
    sharded = type(model).from_pretrained(folder / "start", dtype=model.dtype, distributed_config=parts)
    trainer = make_trainer(family, sharded, folder / "run", save_strategy="no")
    trainer.train()
    trainer.save_model()
    dist.barrier()
    whole = type(model).from_pretrained(folder / "run", dtype=model.dtype)
    compare_weights(whole, folder / "run")
    again = type(model).from_pretrained(folder / "run", dtype=model.dtype, distributed_config=parts)
    compare_weights(again, folder / "run")
    ends = zip(trainer.model.parameters(), again.parameters(), strict=True)
    return max(float((one.full_tensor() - other.full_tensor()).abs().max()) for one, other in ends)


def other_weights_on_rank_1(folder, family):
    """Only rank 1 gets a zero where a weight was; both ranks have to stop."""
    make_trainer(family, tiny_model(family, 0), folder).train()
    dist.barrier()
    trainer = make_trainer(family, tiny_model(family, 1), folder)
    load = resume.load_weights

    def broken(model, checkpoint):
        load(model, checkpoint)
        with torch.no_grad():
            next(model.parameters()).zero_()

    if trainer.args.process_index == 1:
        resume.load_weights = broken
    try:
        return error_of(lambda: trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2")))
    finally:
        resume.load_weights = load


WORK = {f.__name__: f for f in (ddp, fsdp2, adapter, stage, other_weights_on_rank_1)}

if __name__ == "__main__":
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    PartialState()
    found = {}
    for work, family in cases:
        own = folder / f"{work}-{family}"
        own.mkdir(exist_ok=True)
        dist.barrier()
        found[f"{work}, {family}"] = WORK[work](own, family)
        dist.barrier()
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    leave_together()
