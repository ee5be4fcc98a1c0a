"""A window with images has the gradient of its segments alone, through the model's own plain forward."""

import copy
import threading

import pytest
import torch

from tests.families_table import IMAGES, record
from tests.image_runs import Catch, image_trainer, in_tower, one_by_one
from tests.rollout_sft.step.test_gradient import SCHEDULES, relative_difference
from tests.tiny_images import CONFIGS, image_model

TOLERANCE = {"qwen3_5": 1e-6}
"""qwen3_5 computes its norm in float32."""


def differences(family, folder, schedule, **overrides):
    model = image_model(family)
    reference = copy.deepcopy(model)
    catcher = Catch()
    trainer = image_trainer(family, model, folder, callbacks=[catcher], **SCHEDULES[schedule], **overrides)
    trainer.train()
    left = {s.sample_id for s in trainer.schedule.waiting}
    images = {sample["id"]: sample["images"] for sample in trainer.samples}
    segments = [(s, images[name]) for name, s in trainer.builder.segments.items() if name not in left]
    expected = one_by_one(family, reference, segments)
    tower, gradient = in_tower(reference), catcher.gradient
    assert float(expected[tower].norm()) > 1e-3 * float(expected.norm()), "the tower has no part in this gradient"
    return trainer, relative_difference(gradient, expected), relative_difference(gradient[tower], expected[tower])


@pytest.mark.parametrize(
    ("family", "schedule"),
    [
        ("qwen3_vl", "micro"),
        ("qwen3_vl", "window, dense"),
        ("qwen2_5_vl", "window, balanced"),
        ("qwen2_vl", "no packing"),
        ("qwen3_5", "window, dense"),
        ("internvl", "window, dense"),
        ("llava_onevision", "window, balanced"),
        ("smolvlm", "micro"),
        ("mistral3", "no packing"),
    ],
)
def test_gradient_with_images_is_that_of_each_segment_alone(tmp_path, family, schedule):
    trainer, whole, tower = differences(family, tmp_path, schedule)
    assert max(whole, tower) < TOLERANCE.get(family, 1e-10), (whole, tower)
    if trainer.args.packing:
        assert max(len(lens) for lens in trainer.last_window) > 1


@pytest.mark.families
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "gradient checkpointing"])
@pytest.mark.parametrize("schedule", ["micro", "window, dense", "window, balanced", "no packing"])
@pytest.mark.parametrize("family", CONFIGS)
def test_every_image_family(tmp_path, family, schedule, checkpointing):
    found = differences(family, tmp_path, schedule, gradient_checkpointing=checkpointing)[1:]
    cell = ["1 rank", schedule.removeprefix("window, "), *["checkpointed"] * checkpointing]
    record(IMAGES, family, {", ".join(cell): max(found)})
    assert max(found) < TOLERANCE.get(family, 1e-10)


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl"])
def test_gradient_checkpointing_inside_the_tower_changes_nothing(tmp_path, family):
    trainer, whole, tower = differences(family, tmp_path, "window, dense", gradient_checkpointing=True)
    checkpointed = [n for n, m in trainer.model.named_modules() if getattr(m, "gradient_checkpointing", False)]
    assert any("visual" in name or "vision" in name for name in checkpointed), checkpointed
    assert max(whole, tower) < 1e-10


def test_adapters_of_peft_train_on_packs_with_images(tmp_path):
    peft = pytest.importorskip("peft")
    base = image_model("qwen3_vl")
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "qkv"], init_lora_weights=False)
    model = peft.get_peft_model(base, lora).double()
    reference = copy.deepcopy(model)
    catcher = Catch()
    trainer = image_trainer("qwen3_vl", model, tmp_path, callbacks=[catcher], post_rollout_pack_scope="window")
    trainer.train()
    images = {sample["id"]: sample["images"] for sample in trainer.samples}
    expected = one_by_one("qwen3_vl", reference, [(s, images[n]) for n, s in trainer.builder.segments.items()])
    assert any("visual" in n and p.requires_grad for n, p in reference.named_parameters())
    assert relative_difference(catcher.gradient, expected) < 1e-10


def test_a_frozen_tower_needs_nothing(tmp_path):
    model = image_model("qwen3_vl")
    model.model.visual.requires_grad_(False)
    reference = copy.deepcopy(model)
    catcher = Catch()
    trainer = image_trainer("qwen3_vl", model, tmp_path, callbacks=[catcher], post_rollout_pack_scope="window")
    trainer.train()
    images = {sample["id"]: sample["images"] for sample in trainer.samples}
    expected = one_by_one("qwen3_vl", reference, [(s, images[n]) for n, s in trainer.builder.segments.items()])
    assert relative_difference(catcher.gradient, expected) < 1e-10


@pytest.mark.parametrize("settings", [{"bf16": True}, {}], ids=["mixed precision", "weights in bfloat16"])
def test_bfloat16_trains_on_packs_with_images(tmp_path, settings):
    dtype = torch.float32 if settings else torch.bfloat16
    trainer = image_trainer("qwen3_vl", image_model("qwen3_vl", dtype), tmp_path, max_steps=2, **settings)
    trainer.train()
    assert 0 < trainer.state.log_history[0]["loss"] < 10


def test_the_dummy_of_packs_without_images_is_logged_and_counts(tmp_path, caplog):
    model = image_model("qwen3_vl")
    with caplog.at_level("INFO", logger="rollout_sft"):
        trainer = image_trainer("qwen3_vl", model, tmp_path, global_max_length=64)
    assert "1 of the 64 tokens of a pack are reserved" in caplog.text
    assert trainer.args.packing_length == trainer.schedule.buffer.packing_length == 63


def test_pixels_exist_for_two_packs_at_a_time(tmp_path):
    """The pack that trains, and the next one, which a thread preprocesses."""
    trainer = image_trainer("qwen3_vl", image_model("qwen3_vl"), tmp_path, post_rollout_pack_scope="window")
    media, threads = trainer.inputs.media, []

    def recorded(images):
        threads.append(threading.current_thread().name)
        return media(images)

    trainer.inputs.media = recorded
    begin, seen = trainer.media.begin, []
    trainer.media.begin = lambda batches: (seen.extend(batches), begin(batches))
    trainer.train()
    assert [name for name in threads if name.startswith("images")] == ["images_0"] * 3, threads
    assert all("pixel_values" not in batch.forward for batch in seen)
