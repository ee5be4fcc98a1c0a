"""What each rank runs for the tests of scope `global`: the same ten steps in scope `window` and in scope `global`."""

import hashlib
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import Qwen3ForCausalLM, TrainerCallback, set_seed

from examples.digits.data import DigitsDataset
from examples.digits.tokenizer import build_digits_tokenizer
from packsched import PackingError, plan_window
from rollout_sft import RolloutSFTTrainer
from rollout_sft.ranks.distributed import leave_together
from tests.image_runs import adapter_of, image_trainer, make_samples
from tests.tiny import shard, tiny_arguments, tiny_config
from tests.tiny_images import image_model

STEPS, MICRO_STEPS, BATCH, LENGTH = 10, 3, 2, 230


class Uneven(torch.utils.data.Dataset):
    """Canvases with many digits for rank 1, and with one or two for every other rank."""

    def __init__(self, ranks):
        self.few = DigitsDataset("train", 400, seed=5, max_digits=2)
        self.many = [s for s in DigitsDataset("train", 400, seed=6, max_digits=12) if 4 < len(s["objects"]) < 9]
        self.ranks = ranks

    def __len__(self):
        return STEPS * MICRO_STEPS * BATCH * self.ranks

    def __getitem__(self, index):
        source = self.many if index // BATCH % self.ranks == 1 else self.few
        return source[index % len(source)]


class Catch(TrainerCallback):
    """Keeps the whole gradient of every optimizer step, and a hash of the weights after it."""

    def __init__(self):
        self.gradients, self.hashes = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(torch.cat([_whole(p.grad).reshape(-1).clone() for p in model.parameters()]))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.hashes.append(hashlib.sha256(_weights(model).numpy().tobytes()).hexdigest())


def _whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _weights(model):
    return torch.cat([_whole(p.detach()).reshape(-1) for p in model.parameters()])


def train(folder, *, sharded, **overrides):
    tokenizer = build_digits_tokenizer()
    settings = {
        "global_max_length": LENGTH,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": MICRO_STEPS,
        "max_steps": STEPS,
        "reference_fraction": 1.0,
        "check_isolation": False,
        "learning_rate": 1e-3,
    }
    config = tiny_arguments(folder, **(settings | overrides))
    set_seed(0)
    model = Qwen3ForCausalLM(tiny_config(tokenizer)).double()
    if sharded:
        model = shard(model, Path(folder))
    catch = Catch()
    trainer = RolloutSFTTrainer(
        model=model,
        args=config,
        processing_class=tokenizer,
        train_dataset=Uneven(dist.get_world_size()),
        callbacks=[catch],
    )
    lens = []
    build = trainer.window_builder.build

    def record(*args):
        window = build(*args)
        lens.append([length for pack in window.pack_lens for length in pack])
        return window

    trainer.window_builder.build = record
    trainer.train()
    return {"catch": catch, "lens": lens, "weights": _weights(trainer.model), "log": trainer.state.log_history[:-1]}


def infeasible(lens):
    try:
        plan_window(lens, LENGTH, MICRO_STEPS)
    except PackingError:
        return True
    return False


def compare(folder, *, sharded, **overrides):
    plain = train(folder, sharded=sharded, post_rollout_pack_scope="window", on_infeasible="extra_steps")
    level = train(folder, sharded=sharded, post_rollout_pack_scope="global", **overrides)
    pairs = zip(plain["catch"].gradients, level["catch"].gradients, strict=True)
    return {
        "gradients": [float((a - b).norm() / a.norm()) for a, b in pairs],
        "weights": float((plain["weights"] - level["weights"]).abs().max()),
        "hashes": level["catch"].hashes,
        "infeasible_alone": [infeasible(lens) for lens in plain["lens"]],
        "before": plain["lens"],
        "after": level["lens"],
        "log": level["log"],
        "sharded": sharded,
    }


def train_images(folder, scope):
    """One step of an image model; only samples of rank 1 have images."""
    family, catch = "qwen3_vl", Catch()
    model = image_model(family)
    sizes = [[(16, 24), (8, 8)] if index // 3 % 2 else [] for index in range(18)]
    trainer = image_trainer(
        family,
        model,
        folder,
        samples=make_samples(adapter_of(family, model), sizes),
        callbacks=[catch],
        post_rollout_pack_scope=scope,
        on_infeasible="extra_steps",
    )
    windows = []
    build = trainer.window_builder.build
    trainer.window_builder.build = lambda *args: windows.append(build(*args)) or windows[-1]
    trainer.train()
    return catch.gradients[0], [len(s.images) for s in windows[0].due]


def compare_images(folder):
    plain, before = train_images(folder, "window")
    level, after = train_images(folder, "global")
    return {"gradient": float((plain - level).norm() / plain.norm()), "images": [sum(before), sum(after)]}


def refuse(folder):
    """One micro-step for the segments of three: they do not fit the packs of all ranks together."""
    try:
        train(
            folder,
            sharded=False,
            post_rollout_pack_scope="global",
            per_device_train_batch_size=BATCH * MICRO_STEPS,
            gradient_accumulation_steps=1,
        )
    except PackingError as error:
        return [type(error).__name__, str(error)]
    raise AssertionError("the window was planned")


if __name__ == "__main__":
    work_folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    results = [compare(str(work_folder), **case) if case else compare_images(str(work_folder)) for case in cases]
    results.append(refuse(str(work_folder)))
    (work_folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(results))
    leave_together()
