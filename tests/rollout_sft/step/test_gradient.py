"""The gradient of a window is that of the same segments run one by one, unpacked: in every scope and objective."""

import copy
from dataclasses import replace

import pytest
import torch

from tests.rollout_sft.conftest import flat_gradient

SCHEDULES = {
    "micro": {"post_rollout_pack_scope": "micro"},
    "micro, fifo": {"post_rollout_pack_scope": "micro", "pack_policy": "fifo"},
    "micro, optimal": {"post_rollout_pack_scope": "micro", "pack_policy": "optimal"},
    "window, dense": {"post_rollout_pack_scope": "window", "pack_objective": "dense"},
    "window, balanced": {"post_rollout_pack_scope": "window", "pack_objective": "balanced"},
    "global, one rank": {"post_rollout_pack_scope": "global"},
    "window, cost": {"post_rollout_pack_scope": "window", "pack_objective": "cost"},
    "no packing": {"packing": False},
}


def one_by_one(model, segments):
    """Each segment alone, as a plain model call sees it: no positions, no packing, no collation of ours."""
    model.zero_grad()
    total = sum(float(s.weights.sum()) for s in segments)
    loss = 0.0
    for s in segments:
        logits = model(input_ids=s.input_ids[None]).logits[0]
        log_probs = torch.log_softmax(logits, dim=-1)
        share = -(s.weights.double() * log_probs[torch.arange(len(s.targets)), s.targets]).sum() / total
        share.backward()
        loss += share.item()
    return loss, flat_gradient(model)


def relative_difference(a, b):
    return float((a - b).norm() / b.norm())


def trained(trainer):
    """The segments of the first window: all that were built but those still in the carry buffer."""
    left = set()
    if hasattr(trainer.schedule, "buffer"):
        left = {id(s) for s in trainer.schedule.buffer.state_dict()["segments"]}
    return [s for s in trainer.recorder.segments if id(s) not in left]


@pytest.mark.parametrize("name", SCHEDULES)
def test_window_gradient_equals_the_segments_one_by_one(make_trainer, make_model, name):
    model = make_model()
    reference_model = copy.deepcopy(model)
    trainer = make_trainer(model=model, **SCHEDULES[name])
    trainer.train()
    segments = trained(trainer)
    loss, gradient = one_by_one(reference_model, segments)

    assert relative_difference(trainer.catcher.gradients[0], gradient) < 1e-10
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=1e-4)
    # Not vacuous: segments differ, some share a pack, and rollouts as well as appended objects are in them.
    assert len(segments) >= 3
    assert len({s.encoded_len for s in segments}) > 1
    if trainer.args.packing:
        assert max(len(lens) for lens in trainer.last_window) > 1
    if name == "window, dense":
        assert trainer.last_window[-1] == [], "this window should leave a pack empty"
    if trainer.args.packing:
        assert sum(1 for lens in trainer.last_window if lens) > 1, "one pack alone would hide a wrong denominator"


def test_targets_of_matched_coordinates_may_differ_from_the_input(make_trainer, make_model):
    """The requirement's coordinate targets are not the next input token; packing must not mix the two up."""
    from rollout_sft import Rollout

    class NearMisses:
        """Answers with the truth of the data set, every box moved by one patch."""

        def __init__(self, dataset, tokenizer):
            self.counters = {}
            self.answers = {tuple(s["prompt_ids"]): s["objects"] for s in (dataset[i] for i in range(len(dataset)))}
            self.tokenizer = tokenizer

        def generate(self, requests):
            import json

            out = []
            for request in requests:
                moved = copy.deepcopy(self.answers[tuple(request.prompt_ids)])
                for found in moved:
                    x1, y1, x2, y2 = found["bbox_2d"]
                    step = 4 if x2 < 40 else -4
                    found["bbox_2d"] = [x1 + step, y1, x2 + step, y2]
                ids = self.tokenizer(json.dumps(moved), add_special_tokens=False)["input_ids"]
                out.append(Rollout(response_ids=ids, truncated=False))
            return out

    from examples.digits.data import DigitsDataset
    from examples.digits.tokenizer import build_digits_tokenizer

    dataset = DigitsDataset("train", 9, seed=5, max_digits=4)
    model = make_model()
    reference_model = copy.deepcopy(model)
    trainer = make_trainer(
        model=model,
        train=dataset,
        backend=NearMisses(dataset, build_digits_tokenizer()),
        post_rollout_pack_scope="window",
        match_iou_threshold=0.2,
        decoding={"max_new_tokens": 60},
    )
    trainer.train()
    segments = trained(trainer)
    off_input = sum(int((s.targets[:-1] != s.input_ids[1:])[s.weights[:-1] > 0].sum()) for s in segments)
    assert off_input > 0, "no matched coordinate differs from the rollout: the test would show nothing"
    _, gradient = one_by_one(reference_model, segments)
    assert relative_difference(trainer.catcher.gradients[0], gradient) < 1e-10


def test_scopes_and_objectives_agree_with_each_other(make_trainer, make_model):
    gradients = {}
    for name in ("window, dense", "window, balanced", "no packing"):
        trainer = make_trainer(model=make_model(), **SCHEDULES[name])
        trainer.train()
        gradients[name] = trainer.catcher.gradients[0]
    for other in ("window, balanced", "no packing"):
        assert relative_difference(gradients[other], gradients["window, dense"]) < 1e-10


def test_float32_agrees_within_rounding(make_trainer, make_model):
    model = make_model(torch.float32)
    reference_model = copy.deepcopy(model).double()
    trainer = make_trainer(model=model, post_rollout_pack_scope="window")
    trainer.train()
    _, gradient = one_by_one(reference_model, trained(trainer))
    assert relative_difference(trainer.catcher.gradients[0].double(), gradient) < 1e-5


def test_reference_answers_are_trained_like_any_segment(make_trainer, make_model):
    model = make_model()
    reference_model = copy.deepcopy(model)
    trainer = make_trainer(model=model, reference_fraction=1.0, post_rollout_pack_scope="window")
    trainer.train()
    _, gradient = one_by_one(reference_model, trained(trainer))
    assert relative_difference(trainer.catcher.gradients[0], gradient) < 1e-10


@pytest.mark.parametrize("name", ["micro", "window, dense", "no packing"])
def test_a_builder_may_weigh_tokens_as_it_likes(make_trainer, make_model, name):
    """Any weight of 0 or more: the loss is a weighted mean, and the denominator is the sum of the weights."""
    model = make_model()
    reference_model = copy.deepcopy(model)
    trainer = make_trainer(model=model, **SCHEDULES[name])
    build = trainer.recorder.inner.build

    def weighed(sample, rollout):
        target = build(sample, rollout)
        weights = target.segment.weights
        drawn = torch.rand(weights.shape, generator=torch.Generator().manual_seed(len(weights)))
        return replace(
            target,
            segment=replace(target.segment, weights=weights * 4 * drawn, weight_sum=float((weights * 4 * drawn).sum())),
        )

    trainer.recorder.inner.build = weighed
    trainer.train()
    segments = trained(trainer)
    assert max(float(s.weights.max()) for s in segments) > 2
    _, gradient = one_by_one(reference_model, segments)
    assert relative_difference(trainer.catcher.gradients[0], gradient) < 1e-10
