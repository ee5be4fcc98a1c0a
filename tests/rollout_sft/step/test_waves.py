"""Windows that are trained in waves: the gradient, the micro-steps and the errors of one wave."""

import logging
from itertools import pairwise

import pytest
import torch

from packsched import InfeasibleWindowError
from rollout_sft.checks.unsupported import check_waves_run_here
from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.inputs.segment import Segment
from rollout_sft.step.denominator import Denominator, scale_gradients
from rollout_sft.step.non_finite import NonFiniteError
from rollout_sft.step.schedule import WindowSchedule
from rollout_sft.step.waves import full_packs, schedule_rest
from tests.tiny import tiny_arguments
from tests.waves import Echo, Prompts, ScriptedBackend, Together, lines, run, train, wave_trainer, weights


@pytest.fixture(scope="module")
def one_wave(tmp_path_factory):
    return train(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def four_waves(tmp_path_factory):
    return train(tmp_path_factory.mktemp("four"), 4)


WINDOW = {"post_rollout_pack_scope": "window"}


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("waves", [2, 4])
def test_ten_steps_reach_the_gradients_and_weights_of_one_wave(tmp_path, one_wave, four_waves, waves):
    trainer = four_waves if waves == 4 else train(tmp_path, waves)
    early = [line["packing/early_packs"] for line in lines(trainer)]
    assert early[0] == 0, "the first window knows no lengths"
    assert sum(early) >= 2 * waves, "windows train something early"
    assert max(line["rollout/waves"] for line in lines(trainer)) == waves
    pairs = list(zip(trainer.catch.gradients, one_wave.catch.gradients, strict=True))
    assert len(pairs) == 10
    assert max(relative(a, b) for a, b in pairs) < 1e-10
    assert (weights(trainer.model) - weights(one_wave.model)).abs().max() < 1e-10
    for mine, theirs in zip(lines(trainer), lines(one_wave), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-6), "accumulated in float32 by the Trainer"
        for name in ("grad_norm", "packing/segments", "packing/post_rollout_fill"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-9)


def test_one_wave_streams_nothing(one_wave):
    assert one_wave.backend.waits == []
    assert "rollout/waves" not in lines(one_wave)[0]


def test_the_trainer_counts_exactly_ga_micro_steps(four_waves):
    assert four_waves.catch.micro_steps == [5] * 10


def test_the_number_of_forwards_rarely_exceeds_that_of_one_wave(one_wave, four_waves):
    packs = [sum(line["packing/non_empty_packs"] for line in lines(t)) for t in (four_waves, one_wave)]
    assert packs[0] <= packs[1] + 2


def test_the_order_of_arrival_changes_nothing_bit_for_bit(tmp_path, four_waves):
    other = train(tmp_path, 4, backend=ScriptedBackend(order=7))
    assert other.backend.waits == four_waves.backend.waits
    assert other.catch.hashes == four_waves.catch.hashes


def test_the_cuts_follow_from_the_window_before(four_waves):
    assert four_waves.backend.waits.count(None) == 9, "every window but the first is streamed and waits for its end"
    assert len({cut for cut in four_waves.backend.waits if cut is not None}) > 4


def test_every_stream_is_closed_and_no_thread_stays(four_waves):
    assert len(four_waves.backend.streams) == 9
    assert all(stream.closed and not stream.thread.is_alive() for stream in four_waves.backend.streams)


def test_the_scaling_alone_is_exact(one_wave, tmp_path):
    """The same plan: every window claims another weight first, and is corrected at its end."""
    trainer = wave_trainer(tmp_path, 1, max_steps=1)
    settle = trainer.denominator.settle

    def claim(weight_sum):
        trainer.denominator.expect(3 * weight_sum)
        settle(weight_sum)

    trainer.denominator.settle = claim
    run(trainer)
    assert relative(trainer.catch.gradients[0], one_wave.catch.gradients[0]) < 1e-15
    assert (trainer.catch.gradients[0] != one_wave.catch.gradients[0]).any(), "nothing was scaled"


def test_the_provisional_denominator_is_a_power_of_two_near_the_weight():
    denominator = Denominator()
    for expected, used in ((1000.0, 1024.0), (0.0, 1.0), (0.3, 0.25)):
        denominator.begin()
        denominator.expect(expected)
        denominator.expect(7.0)
        denominator.settle(640.0)
        assert denominator.used == used
        assert denominator.correction == used / 640
    denominator.begin()
    assert not denominator.is_settled
    denominator.settle(640.0)
    assert denominator.correction == 1.0


def test_scaling_leaves_parameters_without_a_gradient_alone():
    model = torch.nn.Linear(2, 2)
    model.weight.grad = torch.ones(2, 2)
    scale_gradients(model, 0.25)
    assert model.weight.grad.unique().tolist() == [0.25]
    assert model.bias.grad is None


@pytest.mark.parametrize("idle", ["dummy", "skip"])
def test_a_window_that_overflows_runs_its_rest_in_the_last_micro_step(tmp_path, idle):
    settings = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 10, "global_max_length": 230}
    one, four = (
        train(tmp_path / str(waves), waves, max_steps=4, idle_micro_steps=idle, on_infeasible="extra_steps", **settings)
        for waves in (1, 4)
    )
    assert [line["packing/extra_packs"] > 0 for line in lines(four)] == [False, False, False, True]
    assert [line["packing/early_packs"] for line in lines(four)] == [0, 1, 1, 1]
    assert four.catch.micro_steps == [2] * 4
    assert (weights(one.model) - weights(four.model)).abs().max() < 1e-10


def segments(*lens):
    return [Segment.from_lists([7] * n, [7] * n, [1.0] * (n - 1) + [0.0], sample_id=str(n)) for n in lens]


def test_a_rest_that_one_wave_would_have_placed_is_trained_in_more_packs(tmp_path):
    """8 + 2 and 6 + 4 fit two packs of 10, but 8 was trained alone."""
    config = tiny_arguments(tmp_path, global_max_length=10, gradient_accumulation_steps=2, **WINDOW)
    schedule, early = WindowSchedule(config, None), full_packs(segments(8), 10)
    rest = schedule_rest(schedule, [segments(2, 6), segments(4)], early=early, micro_steps=2)
    assert sorted(s.encoded_len for pack in rest.packs for s in pack.segments) == [2, 4, 6]
    assert len(rest.packs) == 2
    assert (rest.fill.non_empty_packs, rest.fill.tokens, rest.fill.lower_bound) == (3, 20, 2)
    with pytest.raises(InfeasibleWindowError, match="4 segments of 21 tokens in all need at least 3 packs"):
        schedule_rest(schedule, [segments(2, 6), segments(5)], early=early, micro_steps=2)


def test_full_packs_are_those_of_the_plan_that_reach_full_enough():
    assert [pack.fill for pack in full_packs(segments(79, 9, 80, 100), 100)] in ([1.0, 0.89], [1.0, 0.88, 0.8])
    assert full_packs(segments(79), 100) == full_packs([], 100) == []


def test_an_infeasible_window_raises_what_one_wave_raises(tmp_path):
    raised = []
    for waves in (1, 4):
        settings = {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 5}
        trainer = wave_trainer(tmp_path / str(waves), waves, **settings)
        with pytest.raises(InfeasibleWindowError) as caught:
            trainer.train()
        raised.append((str(caught.value), trainer.state.global_step, len(trainer.catch.hashes)))
    assert raised[0] == raised[1]
    assert raised[1][1:] == (3, 3), "nothing was stepped"
    assert trainer.catch.micro_steps[3] == 2, "a pack of the refused window was trained before"


def test_a_backend_that_fails_in_a_later_wave_stops_the_run_with_its_error(tmp_path):
    trainer = wave_trainer(tmp_path, 4, backend=ScriptedBackend(fails_in_wave=2))
    with pytest.raises(ConnectionError, match="the server is gone") as caught:
        trainer.train()
    assert "in step 2 on rank 0" in caught.value.__notes__
    assert trainer.state.global_step == 1
    assert trainer.backend.streams[-1].closed


def test_a_window_without_supervision_is_refused_at_its_end(tmp_path):
    class Silent(Echo):
        def build(self, sample, rollout):
            target = super().build(sample, rollout)
            if int(sample["id"][1:]) >= 20:
                ids = target.segment.input_ids.tolist()
                object.__setattr__(target, "segment", type(target.segment).from_lists(ids, ids, [0.0] * len(ids)))
            return target

    trainer = wave_trainer(tmp_path, 4, builder=Silent())
    with pytest.raises(ValueError, match="step 2: no position of the window is supervised"):
        trainer.train()
    assert len(trainer.catch.hashes) == 1


def test_reference_samples_belong_to_the_first_wave(tmp_path):
    one, four = (train(tmp_path / str(waves), waves, reference_fraction=0.5, max_steps=3) for waves in (1, 4))
    assert sum(line["packing/early_packs"] for line in lines(four)) > 0
    assert max(relative(a, b) for a, b in zip(four.catch.gradients, one.catch.gradients, strict=True)) < 1e-10


def test_an_epoch_ends_with_a_short_window_in_waves(tmp_path):
    data = Prompts(50)
    one, four = (train(tmp_path / str(waves), waves, data=data, max_steps=-1, num_train_epochs=2) for waves in (1, 4))
    assert four.catch.micro_steps == one.catch.micro_steps == [5, 5, 3] * 2
    assert (weights(one.model) - weights(four.model)).abs().max() < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_gradients_stay_finite_and_close(tmp_path, dtype):
    one, four = (train(tmp_path / str(waves), waves, dtype=dtype, max_steps=2) for waves in (1, 4))
    assert sum(line["packing/early_packs"] for line in lines(four)) > 0
    bound = 1e-5 if dtype is torch.float32 else 3e-2
    assert relative(four.catch.gradients[1].float(), one.catch.gradients[1].float()) < bound


class Scaler(torch.amp.GradScaler):
    """Passes on a factor in float32, which `float64_throughout` keeps in float64."""

    def _unscale_grads_(self, optimizer, inv_scale, *args):
        return super()._unscale_grads_(optimizer, inv_scale.type(torch.float32), *args)


def with_scaler(trainer, monkeypatch, **scaler):
    """Trains with the scaler and the autocast of `fp16: true`, which accelerate leaves out on a CPU."""
    monkeypatch.setattr(trainer.accelerator.state, "_mixed_precision", "fp16")
    trainer.accelerator.native_amp = True
    trainer.accelerator.scaler = Scaler("cpu", **scaler)
    return run(trainer)


def test_a_scaler_of_float16_changes_no_gradient_of_a_wave(tmp_path, one_wave, monkeypatch):
    trainer = with_scaler(wave_trainer(tmp_path, 4), monkeypatch, growth_interval=3)
    assert trainer.accelerator.scaler.get_scale() == 2.0**19, "it has not scaled"
    assert sum(line["packing/early_packs"] for line in lines(trainer)) > 0
    pairs = zip(trainer.catch.gradients, one_wave.catch.gradients, strict=True)
    assert max(relative(a, b) for a, b in pairs) < 1e-10
    assert (weights(trainer.model) - weights(one_wave.model)).abs().max() < 1e-10


def test_an_overflow_of_float16_skips_all_waves_of_a_window(tmp_path, monkeypatch):
    trainer = wave_trainer(tmp_path, 4, dtype=torch.float32, max_steps=6)
    with_scaler(trainer, monkeypatch, init_scale=2.0**40, backoff_factor=2.0**-14)
    early = [line["packing/early_packs"] > 0 for line in lines(trainer)]
    kept = [a == b for a, b in pairwise(trainer.catch.hashes)]
    assert kept == [True, False, False, False, False], "steps one and two overflow"
    assert early[1:3] == [True, True], "the second step had only one wave: nothing is shown"


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_loss_that_is_not_finite_in_an_early_pack_keeps_the_step_out(tmp_path, policy):
    trainer = wave_trainer(tmp_path, 4, max_steps=4, on_non_finite=policy, max_grad_norm=1.0)
    compute, seen = trainer.compute_loss, []

    def spoiled(model, inputs, *args, **kwargs):
        loss = compute(model, inputs, *args, **kwargs)
        if trainer.state.global_step == 2 and not trainer.denominator.is_settled and not seen:
            seen.append(trainer.micro_step)
            return loss * float("nan")
        return loss

    trainer.compute_loss = spoiled
    if policy == "raise":
        with pytest.raises(NonFiniteError, match="micro-step 1: loss nan"):
            trainer.train()
        assert len(trainer.catch.hashes) == 2
    else:
        trainer.train()
        assert [e["non_finite_steps"] for e in trainer.state.log_history if "non_finite_steps" in e] == [0, 0, 1, 0]
        assert trainer.catch.hashes[2] == trainer.catch.hashes[1]
        assert trainer.catch.hashes[3] != trainer.catch.hashes[2]
    assert seen == [1], "the spoiled pack was to be trained before the window was complete"


def test_other_backends_run_as_with_one_wave_and_the_log_says_so(tmp_path, one_wave, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = train(tmp_path, 4, backend=Together())
    said = [r.getMessage() for r in caplog.records if "rollout_waves" in r.getMessage()]
    assert len(said) == 1
    assert "Together hands out all rollouts of a window together" in said[0]
    assert trainer.catch.hashes == one_wave.catch.hashes


def test_a_validated_window_runs_as_with_one_wave(tmp_path, one_wave):
    trainer = train(tmp_path, 4, validate_schedule="every_window", max_steps=2)
    assert trainer.backend.waits == []
    assert relative(trainer.catch.gradients[1], one_wave.catch.gradients[1]) < 1e-10


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"post_rollout_pack_scope": "micro"}, "post_rollout_pack_scope is micro: what its packs hold"),
        ({"post_rollout_pack_scope": "global"}, "post_rollout_pack_scope is global: segments move between ranks"),
        ({"packing": False, "post_rollout_pack_scope": "window"}, "training.packing is false"),
        ({"loss_reduction": "micro", "post_rollout_pack_scope": "window"}, "loss_reduction is micro"),
    ],
)
def test_what_cannot_be_trained_in_waves_is_refused_by_name(tmp_path, settings, reason):
    with pytest.raises(ValueError, match=f"rollout_waves is 2, but .*{reason}.*Set rollout_waves: 1"):
        RolloutSFTConfig(output_dir=str(tmp_path), global_max_length=8, use_cpu=True, rollout_waves=2, **settings)


def test_deepspeed_is_refused_because_it_hides_its_gradients(tmp_path):
    config = RolloutSFTConfig(
        output_dir=str(tmp_path),
        global_max_length=8,
        use_cpu=True,
        rollout_waves=2,
        post_rollout_pack_scope="window",
    )
    with pytest.raises(ValueError, match="DeepSpeed hides them"):
        check_waves_run_here(config, ScriptedBackend(), deepspeed=True)
