"""Trains four steps of scope micro on image files, saves every two and dies where it is told to."""

import json
import sys
from pathlib import Path

import torch
from PIL import Image as Pictures

from rollout_sft.checkpoint.manifest import last_finished_checkpoint
from rollout_sft.inputs.images import Image
from tests.image_runs import adapter_of, image_trainer, make_samples
from tests.rollout_sft.checkpoint.resume_worker import DieAfterStep
from tests.tiny_images import image_model


def on_disk(image, path):
    """The same image as a reference to a file."""
    if not path.exists():
        Pictures.fromarray(image.source).save(path)
    return Image(source=str(path), height=image.height, width=image.width)


def main(folder, kill_step):
    model = image_model("qwen3_vl", torch.float32)
    samples = make_samples(adapter_of("qwen3_vl", model))
    for sample in samples:
        files = [folder / f"{sample['id']}-{i}.png" for i in range(len(sample["images"]))]
        sample["images"] = tuple(on_disk(image, file) for image, file in zip(sample["images"], files, strict=True))
    trainer = image_trainer(
        "qwen3_vl",
        model,
        folder / "run",
        samples=samples * 2,
        callbacks=[DieAfterStep(kill_step)],
        global_max_length=32,
        packing_buffer=16,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=4,
        save_strategy="steps",
        save_steps=2,
        learning_rate=1e-2,
        train_sampling_strategy="random",
    )
    trainer.train(resume_from_checkpoint=last_finished_checkpoint(folder / "run"))
    torch.save(trainer.model.state_dict(), folder / "end.pt")
    waiting = [[s.sample_id, [image.source for image in s.images]] for s in trainer.schedule.waiting]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    (folder / "end.json").write_text(json.dumps({"waiting": waiting, "losses": losses}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
