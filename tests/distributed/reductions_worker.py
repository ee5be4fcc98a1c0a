"""Every reduction in every schedule on two ranks, one of them (nearly) without data; started by test_reductions.py."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from rollout_sft.data.samples import MicroBatch
from rollout_sft.ranks.distributed import leave_together
from tests.distributed.worker import Catch, build

SCHEDULES = {
    "padded": {"packing": False},
    "micro": {"post_rollout_pack_scope": "micro"},
    "window, dense": {"post_rollout_pack_scope": "window", "pack_objective": "dense"},
    "window, balanced": {"post_rollout_pack_scope": "window", "pack_objective": "balanced"},
}
REDUCTIONS = ("token", "segment", "micro")


def thin(raw, samples):
    """What a rank gets whose data ends: a first micro-batch of one sample, or nothing at all."""
    for batch in raw:
        if samples:
            yield MicroBatch(batch.samples[:samples])
        return


def textbook(model, micro_batches, reduction):
    """The formula over all ranks' micro-batches, written out with means of means instead of token weights."""

    def tokens(segment):
        log_probs = torch.log_softmax(model(input_ids=segment.input_ids[None]).logits[0], dim=-1)
        ce = -log_probs[torch.arange(len(segment.targets)), segment.targets]
        return ce[segment.weights > 0]

    if reduction == "token":
        loss = torch.cat([tokens(s) for batch in micro_batches for s in batch]).mean()
    elif reduction == "segment":
        loss = torch.stack([tokens(s).mean() for batch in micro_batches for s in batch]).mean()
    else:
        loss = torch.stack([torch.cat([tokens(s) for s in batch]).mean() for batch in micro_batches]).mean()
    loss.backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])


def difference(folder, schedule, reduction, samples, *, sharded):
    """Relative difference of the gradient of one window from the textbook's, and what rank 1 trained."""
    trainer = build(folder, sharded=sharded, loss_reduction=reduction, **SCHEDULES[schedule])
    catch = Catch()
    trainer.add_callback(catch)
    get_batch_samples, build_target = trainer.get_batch_samples, trainer.target_builder.build
    if trainer.args.process_index == 1:
        trainer.get_batch_samples = lambda raw, *rest: get_batch_samples(thin(raw, samples), *rest)
    segments = []

    def record(sample, rollout):
        target = build_target(sample, rollout)
        segments.append(target.segment)
        return target

    trainer.target_builder.build = record
    trainer.train()
    size = trainer.args.per_device_train_batch_size
    mine = [segments[i : i + size] for i in range(0, len(segments), size)]
    everyone = [None, None]
    dist.all_gather_object(everyone, mine)
    expected = textbook(trainer.whole_model, everyone[0] + everyone[1], reduction)
    return {
        "difference": float((catch.gradient - expected).norm() / expected.norm()),
        "segments": [sum(len(batch) for batch in rank) for rank in everyone],
        "left": len(trainer.schedule.waiting),
        "sharded": any(hasattr(p, "full_tensor") for p in trainer.model.parameters()),
    }


if __name__ == "__main__":
    folder, sharded = Path(sys.argv[1]), sys.argv[2] == "fsdp2"
    results = {}
    for schedule, reduction, samples in json.loads(sys.argv[3]):
        name = f"{schedule} / {reduction} / {samples}"
        results[name] = difference(folder, schedule, reduction, samples, sharded=sharded)
    rank = dist.get_rank()
    (folder / f"rank{rank}.json").write_text(json.dumps(results))
    leave_together()
