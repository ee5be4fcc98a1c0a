"""One rank alone fails outside of a window's rollouts; started by test_shared_failures.py.

Failures that were shared leave the processes usable, so all of them run in one launch, one after the other.
"""

import json
import math
import sys
from pathlib import Path

import torch.distributed as dist
from torch.utils.data import IterableDataset

import rollout_sft.trainer
from rollout_sft.checks import leak_probe
from rollout_sft.checks.leak_probe import LeakError
from rollout_sft.ranks.distributed import leave_together
from tests.distributed.worker import build


def error_of(work):
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def save_on_a_full_disk(folder):
    """Rank 1 cannot write the state of its generators."""
    trainer = build(folder, save_strategy="steps", save_steps=1)
    if trainer.args.process_index == 1:

        def full(_):
            raise OSError(28, "No space left on device")

        trainer._save_rng_state = full
    error = error_of(trainer.train)
    finished = sorted(p.parent.name for p in folder.glob("checkpoint-*/finished"))
    return {"error": error, "finished": finished}


def resume_without_a_buffer(folder):
    """The carry buffer of rank 1 is missing in a checkpoint of an earlier version, whose mark lists no files."""
    trainer = build(folder, save_strategy="steps", save_steps=1)
    trainer.train()
    dist.barrier()
    if trainer.args.process_index == 1:
        (folder / "checkpoint-1" / "carry_buffer_rank1.pt").unlink()
        (folder / "checkpoint-1" / "finished").write_text("")
    dist.barrier()
    again = build(folder, max_steps=2)
    return {"error": error_of(lambda: again.train(resume_from_checkpoint=str(folder / "checkpoint-1")))}


def evaluate_a_broken_file(folder):
    """Rank 0 cannot read its third sample of the evaluation data."""
    trainer = build(folder)
    samples, rank = trainer.eval_dataset, trainer.args.process_index

    class Broken:
        def __len__(self):
            return len(samples)

        def __getitem__(self, index):
            if rank == 0 and index > 1:
                raise OSError(f"sample {index} cannot be read")
            return samples[index]

    return {"error": error_of(lambda: trainer.evaluate(eval_dataset=Broken()))}


def leak_on_one_rank(folder):
    """Only rank 1 finds a leak; no rank may begin to train."""
    trainer = build(folder)
    original, rank = leak_probe.check_isolation, trainer.args.process_index

    def check(model, **options):
        report = original(model, **options)
        if rank == 1:
            raise LeakError("packed segments see each other here")
        return report

    leak_probe.check_isolation = check
    try:
        return {"error": error_of(trainer.train)}
    finally:
        leak_probe.check_isolation = original


def infinite_loss(folder, *, skip=False, sharded=False):
    """In step 2 a loss of rank 1 is infinite, though its gradient is finite."""
    settings = {"max_steps": 3, "post_rollout_pack_scope": "window", "check_isolation": False}
    trainer = build(folder, sharded=sharded, on_non_finite="skip" if skip else "raise", **settings)
    if trainer.args.process_index == 1:
        weighted = rollout_sft.trainer.weighted_loss

        def infinite(*args):
            found = trainer.state.global_step == 1 and trainer.micro_step == 1
            return weighted(*args) + (math.inf if found else 0.0)

        rollout_sft.trainer.weighted_loss = infinite
    try:
        error = error_of(trainer.train)
    finally:
        if trainer.args.process_index == 1:
            rollout_sft.trainer.weighted_loss = weighted
    weights = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in trainer.model.parameters()]
    log = [entry.get("non_finite_steps") for entry in trainer.state.log_history if "grad_norm" in entry or skip]
    total = float(sum(w.double().sum() for w in weights))
    return {"error": error, "steps": trainer.state.global_step, "weights": total, "skipped": log[:3]}


def skipped_loss(folder):
    return infinite_loss(folder, skip=True)


def infinite_loss_sharded(folder):
    return infinite_loss(folder, sharded=True)


def skipped_loss_sharded(folder):
    return infinite_loss(folder, skip=True, sharded=True)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


def empty_stream(folder):
    """No rank has a sample."""
    trainer = build(folder)
    trainer.train_dataset = Stream()
    return {"error": error_of(trainer.train)}


def empty_data_set(folder):
    trainer = build(folder)
    trainer.train_dataset = []
    return {"error": error_of(trainer.train)}


if __name__ == "__main__":
    folder, results = Path(sys.argv[1]), {}
    scenarios = (save_on_a_full_disk, resume_without_a_buffer, evaluate_a_broken_file, leak_on_one_rank)
    scenarios += (infinite_loss, skipped_loss, infinite_loss_sharded, skipped_loss_sharded)
    for scenario in (*scenarios, empty_stream, empty_data_set):
        own = folder / scenario.__name__
        own.mkdir(exist_ok=True)
        results[scenario.__name__] = scenario(own)
        dist.barrier()
    rank = dist.get_rank()
    (folder / f"rank{rank}.json").write_text(json.dumps(results))
    leave_together()
