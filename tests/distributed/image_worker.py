"""What each of two ranks runs with an image model: one window after the other, each beside its segments alone."""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
from accelerate import PartialState
from transformers import TrainerCallback

from rollout_sft.ranks.distributed import leave_together
from tests.distributed.windows import in_turn, is_sharded, train_window
from tests.image_runs import SIZES, Catch, adapter_of, image_trainer, in_tower, make_samples, one_by_one
from tests.tiny import shard
from tests.tiny_images import image_model


def gradient(folder, family, *, sharded=False, layout="mixed", **overrides):
    """
    The gradient of one window over both ranks beside all their segments alone, through the model's plain forward.

    `layout`: segments with 0, 1 and 2 images on both ranks ("mixed"), none with an image on rank 1 ("no image"), or no
    segment on rank 1 ("no segment").
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = image_model(family)
    reference = copy.deepcopy(model)
    if sharded:
        model = shard(model, folder)
    adapter = adapter_of(family, reference)
    first, second = (make_samples(adapter, sizes, seed) for seed, sizes in enumerate([SIZES, SIZES[::-1]]))
    if layout == "no image":
        second = make_samples(adapter, [[]] * len(SIZES), seed=1)
    for sample in second:
        sample["id"] += "b"
    samples = in_turn(first, second)
    catch = Catch()
    trainer = image_trainer(family, model, folder, samples=samples, callbacks=[catch], **overrides)
    try:
        everyone = train_window(trainer, idle_rank=1 if layout == "no segment" else None)
    except Exception as error:
        return {"error": str(error)}
    images = {sample["id"]: sample["images"] for sample in samples}
    for sample in samples:  # both ranks know all samples
        trainer.builder.build_reference(sample)
    flat = [(trainer.builder.segments[name], images[name]) for rank in everyone for name in rank]
    expected = one_by_one(family, reference, flat)
    tower = in_tower(reference)
    apart = [float((catch.gradient - expected)[part].norm() / expected[part].norm()) for part in (tower, ~tower)]
    return {
        "difference": max(apart),
        "images": [sum(len(images[name]) for name in rank) for rank in everyone],
        "segments": [len(rank) for rank in everyone],
        "packs": trainer.last_window,
        "sharded": is_sharded(trainer.model),
    }


class Delete(TrainerCallback):
    """Deletes a file after the first step."""

    def __init__(self, file):
        self.file = file

    def on_step_end(self, args, state, control, **kwargs):
        if args.process_index == 0:
            self.file.unlink(missing_ok=True)


def deleted(folder, family):
    """The file of an image of rank 1 disappears before its second window."""
    model, file = image_model(family), folder / "gone.png"
    adapter = adapter_of(family, model)
    first, second = (make_samples(adapter, SIZES * 2, seed) for seed in range(2))
    [picture] = second[len(SIZES)]["images"]
    if dist.get_rank() == 0:
        picture.pixels().save(file)
    dist.barrier()
    second[len(SIZES)]["images"] = (replace(picture, source=str(file)),)
    trainer = image_trainer(
        family, model, folder, samples=in_turn(first, second), callbacks=[Delete(file)], max_steps=2
    )
    try:
        trainer.train()
    except Exception as error:
        words = [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]
        return {"error": "\n".join(words), "step": trainer.state.global_step}


if __name__ == "__main__":
    PartialState(cpu=True)
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    if cases == ["deleted"]:
        results = [deleted(folder, "qwen3_vl")]
    else:
        results = [gradient(folder / str(number), **case) for number, case in enumerate(cases)]
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(results))
    if not any("error" in result for result in results):  # after an error the ranks have left each other
        leave_together()
