"""A step that is not finite never reaches the optimizer; where it came from is said."""

import logging
import math

import pytest
import torch
from transformers import TrainerCallback

from rollout_sft.step.loss import share_of_window
from rollout_sft.step.non_finite import SKIPS_IN_A_ROW, NonFiniteError, first_non_finite

RUN = {"reference_fraction": 1.0, "post_rollout_pack_scope": "window", "max_steps": 3, "check_isolation": False}


def plant(trainer, steps, value=math.nan, *, in_gradient=False, micro_step=2):
    """The loss, or only its gradient, of one micro-step of some steps becomes `value`."""
    compute = trainer.compute_loss

    def broken(*args, **kwargs):
        loss = compute(*args, **kwargs)
        if trainer.state.global_step + 1 not in steps or trainer.micro_step != micro_step or not loss.requires_grad:
            return loss
        if in_gradient:
            loss.register_hook(lambda gradient: gradient * value)
            return loss
        return loss * value

    trainer.compute_loss = broken


def weights(trainer):
    return [p.detach().clone() for p in trainer.model.parameters()]


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
@pytest.mark.parametrize(("value", "in_gradient"), [(math.nan, False), (math.inf, False), (math.inf, True)])
def test_a_step_that_is_not_finite_raises_before_the_optimizer(make_trainer, value, in_gradient, max_grad_norm):
    good = make_trainer(max_grad_norm=max_grad_norm, **{**RUN, "max_steps": 1}, lr_scheduler_type="constant")
    good.train()
    trainer = make_trainer(max_grad_norm=max_grad_norm, **RUN, lr_scheduler_type="constant")
    plant(trainer, {2}, value, in_gradient=in_gradient)
    with pytest.raises(NonFiniteError, match=r"^step 2: the norm of the gradient is (nan|inf)") as caught:
        trainer.train()
    assert trainer.state.global_step == 1
    assert all(torch.equal(a, b) for a, b in zip(weights(good), weights(trainer), strict=True))
    message = str(caught.value)
    window = {segment.sample_id for segment in trainer.recorder.segments[9:18]}
    assert any(repr(name) in message for name in window)
    assert ("rank 0, every loss is finite, samples " if in_gradient else "rank 0, micro-step 2: loss ") in message
    assert "rollout_matching.on_non_finite: skip" in message


def test_a_skipped_step_leaves_weights_optimizer_and_loss_alone(make_trainer, caplog):
    trainer = make_trainer(**RUN, on_non_finite="skip")
    plant(trainer, {2})
    seen = {}
    end = trainer._maybe_log_save_evaluate

    def spy(*args, **kwargs):
        step = trainer.state.global_step
        state = trainer.optimizer.state_dict()["state"]
        seen[step] = [*weights(trainer), *(v.clone() for s in state.values() for v in s.values())]
        end(*args, **kwargs)

    trainer._maybe_log_save_evaluate = spy
    with caplog.at_level(logging.WARNING, logger="rollout_sft.step.non_finite"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(seen[1], seen[2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(seen[2], seen[3], strict=True))
    lines = [entry for entry in trainer.state.log_history if "non_finite_steps" in entry]
    assert [line["non_finite_steps"] for line in lines] == [0, 1, 0]
    assert ["loss" in line for line in lines] == [True, False, True]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert "micro-step 2: loss nan" in caplog.text
    assert "Skipped, number 1 in a row." in caplog.text


def test_the_mean_loss_of_a_log_line_leaves_skipped_steps_out(make_trainer):
    run = {**RUN, "logging_steps": 3, "learning_rate": 0.0, "train_sampling_strategy": "sequential"}
    plain = make_trainer(**{**run, "logging_steps": 1})
    plain.train()
    losses = [entry["loss"] for entry in plain.state.log_history if "loss" in entry]
    trainer = make_trainer(**run, on_non_finite="skip")
    plant(trainer, {2})
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx((losses[0] + losses[2]) / 2)


def test_too_many_skipped_steps_in_a_row_end_the_run(make_trainer):
    trainer = make_trainer(**{**RUN, "max_steps": 20}, on_non_finite="skip")
    plant(trainer, range(3, 30))
    with pytest.raises(NonFiniteError, match=f"number {SKIPS_IN_A_ROW} in a row"):
        trainer.train()
    assert trainer.state.global_step == 2 + SKIPS_IN_A_ROW - 1


def test_bad_weights_are_named_and_never_saved(make_trainer, tmp_path):
    trainer = make_trainer(**{**RUN, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1})

    class HugeStep(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            if state.global_step == 1:
                model.model.norm.weight.data.fill_(math.inf)

    trainer.add_callback(HugeStep)
    with pytest.raises(NonFiniteError, match=r"step 2: model\.norm\.weight holds values .*one is .*/checkpoint-1"):
        trainer.train()
    assert [p.name for p in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]


def test_weights_that_are_nan_at_the_start_are_called_that(make_trainer, make_model):
    model = make_model()
    model.model.layers[1].mlp.down_proj.weight.data[3, 4] = math.nan
    trainer = make_trainer(model=model, **{**RUN, "check_isolation": True})
    with pytest.raises(NonFiniteError, match=r"^NaN weights at the start: model\.layers\.1\.mlp\.down_proj\.weight"):
        trainer.train()


@pytest.mark.parametrize(("value", "expected"), [(2.0, 3.0), (math.nan, math.nan), (math.inf, math.nan)])
def test_a_loss_that_is_not_finite_is_a_gradient_that_is_not(value, expected):
    x = torch.tensor(value, requires_grad=True)
    share_of_window(x, window_weight=1.0, ranks=3).backward()
    assert x.grad.item() == pytest.approx(expected, nan_ok=True)


def test_the_first_bad_weight_is_found_in_every_precision():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2, dtype=torch.bfloat16))
    assert first_non_finite(model) is None
    model[0].weight.data.fill_(3e38)  # its sum is infinite, it is not
    assert first_non_finite(model) is None
    model[1].bias.data[1] = -math.inf
    assert first_non_finite(model) == "1.bias"
