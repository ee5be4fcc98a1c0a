"""A window with images has the gradient of its segments alone, through the model's own plain forward."""

import copy

import pytest
import torch

from tests.image_runs import image_trainer, one_by_one
from tests.rollout_sft.conftest import GradientCatcher
from tests.rollout_sft.step.test_gradient import SCHEDULES, relative_difference
from tests.tiny_images import image_model

TOLERANCE = {"qwen3_5": 1e-6}
"""qwen3_5 computes its norm in float32."""


def differences(family, folder, schedule, **overrides):
    model = image_model(family)
    reference = copy.deepcopy(model)
    catcher = GradientCatcher()
    trainer = image_trainer(family, model, folder, callbacks=[catcher], **SCHEDULES[schedule], **overrides)
    trainer.train()
    left = {s.sample_id for s in trainer.schedule.waiting}
    images = {sample["id"]: sample["images"] for sample in trainer.samples}
    segments = [(s, images[name]) for name, s in trainer.builder.segments.items() if name not in left]
    expected = one_by_one(family, reference, segments)
    tower = torch.cat([torch.full((p.numel(),), "visual" in n) for n, p in model.named_parameters()])
    gradient = catcher.gradients[0]
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
    ],
)
def test_gradient_with_images_is_that_of_each_segment_alone(tmp_path, family, schedule):
    trainer, whole, tower = differences(family, tmp_path, schedule)
    assert max(whole, tower) < TOLERANCE.get(family, 1e-10), (whole, tower)
    if trainer.args.packing:
        assert max(len(lens) for lens in trainer.last_window) > 1
