"""What each of two ranks runs; started by the tests beside it. Writes one file per rank."""

import copy
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import Qwen3ForCausalLM, TrainerCallback, set_seed

from examples.digits.data import DigitsDataset
from examples.digits.tokenizer import build_digits_tokenizer
from rollout_sft import RolloutSFTTrainer
from rollout_sft.ranks.distributed import leave_together
from tests.tiny import shard, shard_on_cpus, tiny_arguments, tiny_config

FSDP2 = {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True}}


def build(folder, *, sharded=False, **overrides):
    tokenizer = build_digits_tokenizer()
    config = tiny_arguments(folder, **{"global_max_length": 700, "decoding": {"max_new_tokens": 12}, **overrides})
    if "fsdp" in overrides:
        shard_on_cpus(config)
    set_seed(0)
    model = Qwen3ForCausalLM(tiny_config(tokenizer)).double()
    whole = copy.deepcopy(model)
    if sharded:
        model = shard(model, Path(folder))
    trainer = RolloutSFTTrainer(
        model=model,
        args=config,
        processing_class=tokenizer,
        train_dataset=DigitsDataset("train", 36, seed=5, max_digits=5),
        eval_dataset=DigitsDataset("eval", 5, seed=1, max_digits=3),
    )
    trainer.whole_model = whole
    return trainer


class Catch(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        inner = getattr(model, "module", model)
        whole = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in inner.parameters()]
        self.gradient = torch.cat([g.reshape(-1).clone() for g in whole])


def gradient(folder, overrides):
    """The gradient of one window over both ranks against all their segments, one by one, unpacked."""
    trainer = build(folder, **overrides)
    reference = trainer.whole_model
    catch = Catch()
    trainer.add_callback(catch)
    segments = []
    schedule = trainer.schedule.schedule

    def spy(micro_batches, micro_steps):
        if trainer.args.process_index == 1 and overrides.get("post_rollout_pack_scope") == "window":
            micro_batches = [micro_batches[0][:1]]  # this rank has one segment, so two of its packs are empty
        window = schedule(micro_batches, micro_steps)
        segments.extend(s for pack in window.packs for s in pack.segments)
        return window

    trainer.schedule.schedule = spy
    trainer.train()
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, segments)
    flat = [s for rank in everyone for s in rank]
    total = sum(float(s.weights.sum()) for s in flat)
    for s in flat:
        log_probs = torch.log_softmax(reference(input_ids=s.input_ids[None]).logits[0], dim=-1)
        (-(s.weights.double() * log_probs[torch.arange(len(s.targets)), s.targets]).sum() / total).backward()
    expected = torch.cat([p.grad.reshape(-1) for p in reference.parameters()])
    return {
        "difference": float((catch.gradient - expected).norm() / expected.norm()),
        "segments": [len(rank) for rank in everyone],
        "packs": trainer.last_window,
        "log": trainer.state.log_history[0],
        "sharded": any(hasattr(p, "full_tensor") for p in trainer.model.parameters()),
    }


def evaluation(folder, overrides):
    """Five samples on two ranks: the padding of the last batch must not be counted twice."""
    trainer = build(folder, per_device_eval_batch_size=2, **overrides)
    seen = []
    score = trainer.target_builder.score

    def spy(sample, rollout):
        seen.append(sample["id"])
        return {**score(sample, rollout), "rollout/number": (float(sample["id"].rpartition("-")[2]), 1.0)}

    trainer.target_builder.score = spy
    metrics = trainer.evaluate()
    return {"mean_number": metrics["eval_rollout/number"], "seen": seen}


def failure(folder, overrides):
    """Rank 1 alone fails in a rollout; both must raise, with its message."""
    trainer = build(folder, **overrides)
    generate = trainer.generation.train.generate

    def broken(requests):
        if trainer.args.process_index == 1:
            raise OSError("the engine on this rank went away")
        return generate(requests)

    trainer.generation.train.generate = broken
    try:
        trainer.train()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": None}


if __name__ == "__main__":
    work, folder, overrides = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    result = {"gradient": gradient, "evaluation": evaluation, "failure": failure}[work](folder, overrides)
    rank = dist.get_rank()
    (folder / f"rank{rank}.json").write_text(json.dumps(result))
    leave_together()
