"""token, segment and micro: each equals its textbook formula, whatever the schedule."""

import copy

import pytest
import torch

from tests.rollout_sft.conftest import flat_gradient
from tests.rollout_sft.step.test_gradient import SCHEDULES, relative_difference, trained

BATCH = 3


def textbook(model, micro_batches, reduction):
    """The formula, written out with means of means instead of token weights."""

    def tokens(segment):
        log_probs = torch.log_softmax(model(input_ids=segment.input_ids[None]).logits[0], dim=-1)
        ce = -log_probs[torch.arange(len(segment.targets)), segment.targets]
        return ce[segment.weights > 0]

    model.zero_grad()
    if reduction == "token":
        loss = torch.cat([tokens(s) for batch in micro_batches for s in batch]).mean()
    elif reduction == "segment":
        loss = torch.stack([tokens(s).mean() for batch in micro_batches for s in batch]).mean()
    else:
        loss = torch.stack([torch.cat([tokens(s) for s in batch]).mean() for batch in micro_batches]).mean()
    loss.backward()
    return flat_gradient(model)


@pytest.mark.parametrize("reduction", ["token", "segment", "micro"])
@pytest.mark.parametrize("name", ["micro", "window, dense", "window, balanced", "no packing"])
def test_a_reduction_is_its_formula_in_every_schedule(make_trainer, make_model, name, reduction):
    model = make_model()
    reference = copy.deepcopy(model)
    trainer = make_trainer(
        model=model, loss_reduction=reduction, per_device_train_batch_size=BATCH, packing_buffer=64, **SCHEDULES[name]
    )
    trainer.train()
    segments = trainer.recorder.segments
    assert len(trained(trainer)) == len(segments), "everything built in this window is trained in it"
    micro_batches = [segments[i : i + BATCH] for i in range(0, len(segments), BATCH)]
    gradient = textbook(reference, micro_batches, reduction)
    assert relative_difference(trainer.catcher.gradients[0], gradient) < 1e-10


def test_the_reductions_differ(make_trainer, make_model):
    """Otherwise the test above would show nothing."""
    gradients = {}
    for reduction in ("token", "segment", "micro"):
        trainer = make_trainer(model=make_model(), loss_reduction=reduction, post_rollout_pack_scope="window")
        trainer.train()
        gradients[reduction] = trainer.catcher.gradients[0]
    assert relative_difference(gradients["token"], gradients["segment"]) > 1e-2
    assert relative_difference(gradients["token"], gradients["micro"]) > 1e-3
    assert relative_difference(gradients["segment"], gradients["micro"]) > 1e-2
