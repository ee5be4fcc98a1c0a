"""Resumes runs of several families on two ranks, and breaks weights on one of them; started by test_weights.py."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from transformers import TrainerCallback
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


def sharded_model(folder, family):
    """A model that FSDP2 shards while transformers loads it."""
    model = tiny_model(family, 0)
    if dist.get_rank() == 0:
        model.save_pretrained(folder / "start")
    dist.barrier()
    parts = DistributedConfig(fsdp_size=dist.get_world_size())
    return type(model).from_pretrained(folder / "start", dtype=model.dtype, distributed_config=parts)


def stage(folder, family):
    """Such a model is saved at the end of a stage, and the next one loads it."""
    trainer = make_trainer(family, sharded_model(folder, family), folder / "run", save_strategy="no")
    trainer.train()
    trainer.save_model()
    dist.barrier()
    model = tiny_model(family, 0)
    for parts in (None, trainer.model.config.distributed_config):
        again = type(model).from_pretrained(folder / "run", dtype=model.dtype, distributed_config=parts)
        compare_weights(again, folder / "run")
    return furthest(trainer.model.state_dict(), again.state_dict())


def best(folder, family):
    """Such a model gets the best of its checkpoints at the end; transformers resumes none of them."""
    seen = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            seen[state.global_step] = {n: t.full_tensor().clone() for n, t in model.state_dict().items()}

    choice = {"load_best_model_at_end": True, "metric_for_best_model": "eval_rollout/second", "eval_strategy": "steps"}
    model = sharded_model(folder, family)
    trainer = make_trainer(family, model, folder, evaluated=True, eval_steps=2, save_only_model=True, **choice)
    trainer.target_builder.score = lambda *_: {"rollout/second": (float(trainer.state.global_step == 2), 1.0)}
    trainer.add_callback(Keep())
    trainer.train()
    weights = {name: tensor.full_tensor() for name, tensor in trainer.model.state_dict().items()}
    assert furthest(weights, seen[4]) > 0
    return furthest(weights, seen[2])


def furthest(one, other):
    """The largest difference between two state dicts."""
    assert one.keys() == other.keys()
    return max(float(_whole(tensor - other[name]).abs().max()) for name, tensor in one.items())


def _whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


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


WORK = {f.__name__: f for f in (ddp, fsdp2, adapter, stage, best, other_weights_on_rank_1)}

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
