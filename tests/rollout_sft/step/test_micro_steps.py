"""Idle micro-steps that run nothing and windows that need more packs than micro-steps: the same gradient, GA steps."""

import copy
import logging

import pytest
import torch

from packsched import InfeasibleWindowError
from rollout_sft.inputs.segment import Segment, pack_of
from rollout_sft.step.collate import collate_pack
from rollout_sft.step.micro_steps import arrange
from tests.rollout_sft.step.test_gradient import one_by_one, relative_difference, trained

WINDOW = {"post_rollout_pack_scope": "window"}
OVERFULL = {**WINDOW, "per_device_train_batch_size": 9, "gradient_accumulation_steps": 2}


def batch(tokens):
    return collate_pack(pack_of([Segment.from_lists([0] * tokens, [0] * tokens, [0.0] * tokens)]), filler_id=0)


def sizes(micro_steps):
    """Tokens of each pack of each micro-step."""
    return [[batch.tokens for batch in micro_step.batches] for micro_step in micro_steps]


@pytest.mark.parametrize(
    ("packs", "micro_steps", "most", "skip_idle", "expected"),
    [
        ([5, 9], 4, 2, False, [[9], [5], [1], [1]]),
        ([5, 9], 4, 2, True, [[], [], [9], [5]]),
        ([5], 4, 3, True, [[], [5], [1], [1]]),
        ([], 3, 2, True, [[], [1], [1]]),
        ([], 2, 0, True, [[], [1]]),
        ([5, 6, 7], 3, 3, True, [[7], [6], [5]]),
        ([5, 6, 7, 8], 2, 4, False, [[8], [7, 6, 5]]),
        ([5, 6, 7, 8], 2, 4, True, [[8], [7, 6, 5]]),
        ([5], 2, 4, False, [[5], [1, 1, 1]]),
        ([5, 6], 1, 2, False, [[6, 5]]),
    ],
)
def test_packs_lie_in_their_micro_steps(packs, micro_steps, most, skip_idle, expected):
    arranged = arrange([batch(n) for n in packs], micro_steps, most=most, skip_idle=skip_idle, dummy=batch(1))
    assert sizes(arranged) == expected
    counted = [micro_step.as_inputs()["input_ids"].numel() for micro_step in arranged]
    assert counted == [sum(tokens) for tokens in expected], "what the Trainer counts"


def count_forwards(trainer):
    """Tokens of each training forward, per optimizer step."""
    steps = []

    def before(module, args, kwargs):
        if torch.is_grad_enabled():
            while len(steps) <= trainer.state.global_step:
                steps.append([])
            steps[trainer.state.global_step].append(kwargs["input_ids"].numel())

    trainer.model.register_forward_pre_hook(before, with_kwargs=True)
    return steps


def test_skipping_idle_micro_steps_changes_no_gradient_and_no_step(make_trainer, make_model):
    gradients = {}
    for idle in ("dummy", "skip"):
        model = make_model()
        reference = copy.deepcopy(model)
        trainer = make_trainer(model=model, idle_micro_steps=idle, max_steps=2, **WINDOW)
        forwards = count_forwards(trainer)
        trainer.train()
        gradients[idle] = trainer.catcher.gradients
        assert trainer.state.global_step == 2
        _, expected = one_by_one(reference, trainer.recorder.segments[:9])
        assert relative_difference(gradients[idle][0], expected) < 1e-10
        lines = [line for line in trainer.state.log_history if "loss" in line]
        for line, tokens in zip(lines, forwards, strict=True):
            filled = int(line["packing/non_empty_packs"])
            assert filled < 3, "no micro-step is idle: the test would show nothing"
            assert len(tokens) == (filled if idle == "skip" else 3)
            assert line["packing/idle_micro_steps"] == 3 - filled
    for dummy, skip in zip(*gradients.values(), strict=True):
        assert relative_difference(skip, dummy) < 1e-12


def test_the_last_micro_step_synchronises_and_is_never_skipped(make_trainer):
    trainer = make_trainer(idle_micro_steps="skip", gradient_accumulation_steps=4, **WINDOW)
    ran = []
    compute = trainer.compute_loss

    def spy(model, inputs, *args, **kwargs):
        ran.append(trainer.accelerator.sync_gradients)
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = spy
    trainer.train()
    assert len(ran) > 1
    assert ran == [False] * (len(ran) - 1) + [True]


def test_an_overfull_window_is_trained_whole_in_the_same_number_of_steps(make_trainer, make_model, caplog):
    with pytest.raises(InfeasibleWindowError):
        make_trainer(**OVERFULL).train()
    model = make_model()
    reference = copy.deepcopy(model)
    trainer = make_trainer(model=model, on_infeasible="extra_steps", validate_schedule="every_window", **OVERFULL)
    forwards, synchronised = count_forwards(trainer), []
    backward = trainer.accelerator.backward
    trainer.accelerator.backward = lambda loss, **kw: (
        synchronised.append(trainer.accelerator.sync_gradients),
        backward(loss, **kw),
    )
    with caplog.at_level(logging.WARNING, logger="rollout_sft.step.micro_steps"):
        trainer.train()
    assert "so its last micro-step runs" in caplog.text
    segments = trained(trainer)
    assert len(segments) == 18, "nothing is dropped"
    assert len(trainer.last_window) > 2
    assert synchronised == [False] * (len(trainer.last_window) - 1) + [True], "DeepSpeed would step at each True"
    loss, expected = one_by_one(reference, segments)
    assert relative_difference(trainer.catcher.gradients[0], expected) < 1e-10
    line = trainer.state.log_history[0]
    assert line["loss"] == pytest.approx(float(loss), rel=1e-6)
    assert line["packing/extra_packs"] == len(trainer.last_window) - 2
    assert 0 < line["packing/post_rollout_fill"] <= 1
    assert trainer.state.global_step == len(trainer.catcher.gradients) == 1
    assert len(forwards[0]) > 0


def test_the_longest_pack_comes_first(make_trainer):
    trainer = make_trainer(global_max_length=200, gradient_accumulation_steps=4, **WINDOW)
    forwards = count_forwards(trainer)
    trainer.train()
    packs = sorted((sum(lens) for lens in trainer.last_window if lens), reverse=True)
    assert len(set(packs)) > 1
    assert forwards[0][: len(packs)] == packs
