"""What people switch on in a Trainer: the gradient of every window is still that of its segments one by one."""

import copy
import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import IterableDataset
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Trainer, TrainingArguments, set_seed

from examples.digits.data import DigitsDataset
from rollout_sft import RolloutSFTConfig
from rollout_sft.targets.objects.builder import ObjectsTargetBuilder
from tests.rollout_sft.step.test_gradient import SCHEDULES, one_by_one, relative_difference, trained

WINDOW = SCHEDULES["window, dense"]
THREE = ["no packing", "micro", "window, dense"]


class Digits(IterableDataset):
    """A stream without a length."""

    def __init__(self, size):
        self.source = DigitsDataset("train", size, seed=5, max_digits=4)

    def __iter__(self):
        return (self.source[i] for i in range(len(self.source)))


def record_windows(trainer):
    """What each optimizer step trains."""
    windows = []
    original = trainer.schedule.schedule

    def schedule(*args):
        window = original(*args)
        windows.append([s for pack in window.packs for s in pack.segments])
        return window

    trainer.schedule.schedule = schedule
    return windows


def assert_every_step_is_its_segments(trainer, bound=1e-10):
    """Trains with a learning rate of 0, so that one reference serves all steps; returns each step's segments."""
    reference = copy.deepcopy(trainer.model)
    windows = record_windows(trainer)
    trainer.train()
    steps = [window for window in windows if window]
    assert len(steps) == len(trainer.catcher.gradients) == trainer.state.global_step
    for segments, gradient in zip(steps, trainer.catcher.gradients, strict=True):
        _, expected = one_by_one(reference, segments)
        assert relative_difference(gradient, expected) < bound
    return steps


def ids(segments):
    return [int(s.sample_id.rpartition("-")[2]) for s in segments]


def each_sample_is_trained_or_waits(trainer, steps, expected):
    seen = [i for segments in steps for i in ids(segments)] + ids(trainer.schedule.waiting)
    assert sorted(seen) == sorted(expected)
    if trainer.args.post_rollout_pack_scope == "window" or not trainer.args.packing:
        assert not trainer.schedule.waiting


@pytest.mark.parametrize("name", THREE)
def test_epochs_that_end_in_a_partial_window(make_trainer, name):
    """10 samples in micro-batches of 2, GA 4: windows of 4 micro-batches and of 1, twice."""
    trainer = make_trainer(
        train=DigitsDataset("train", 10, seed=5, max_digits=4),
        max_steps=-1,
        num_train_epochs=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        learning_rate=0.0,
        **SCHEDULES[name],
    )
    steps = assert_every_step_is_its_segments(trainer)
    assert len(steps) == 4
    each_sample_is_trained_or_waits(trainer, steps, [*range(10)] * 2)
    if name != "micro":
        assert [ids(segments) for segments in steps[1::2]] == [[8, 9]] * 2


@pytest.mark.parametrize("idle", ["dummy", "skip"])
def test_an_epoch_s_last_window_may_have_as_many_packs_as_a_whole_one(make_trainer, tokenizer, idle):
    """Two long samples are left for one micro-step, and no pack holds both; eight shorter ones fitted four packs."""
    builder = ObjectsTargetBuilder(tokenizer=tokenizer)
    samples = list(DigitsDataset("train", 10, seed=5, max_digits=4)[i] for i in range(10))
    samples.sort(key=lambda sample: builder.build_reference(sample).segment.encoded_len)
    lens = [builder.build_reference(sample).segment.encoded_len for sample in samples]
    trainer = make_trainer(
        train=samples,
        global_max_length=lens[8] + lens[9] - 1,
        reference_fraction=1.0,
        max_steps=-1,
        num_train_epochs=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        idle_micro_steps=idle,
        learning_rate=0.0,
        post_rollout_pack_scope="window",
    )
    steps = assert_every_step_is_its_segments(trainer)
    assert [len(segments) for segments in steps] == [8, 2]
    assert trainer.last_window == [[lens[9]], [lens[8]]]
    assert trainer.state.log_history[1]["packing/extra_packs"] == 1
    assert trainer.state.log_history[0]["packing/extra_packs"] == 0


@pytest.mark.parametrize("name", THREE)
def test_a_stream_without_a_length(make_trainer, name):
    """The stream ends inside a window, begins again, and `max_steps` ends training inside the second pass."""
    trainer = make_trainer(
        train=Digits(7),
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        learning_rate=0.0,
        **SCHEDULES[name],
    )
    steps = assert_every_step_is_its_segments(trainer)
    each_sample_is_trained_or_waits(trainer, steps, [*range(7), *range(6)])


@pytest.mark.parametrize("name", THREE)
def test_max_steps_ends_in_the_middle_of_an_epoch(make_trainer, name):
    trainer = make_trainer(max_steps=1, per_device_train_batch_size=2, learning_rate=0.0, **SCHEDULES[name])
    steps = assert_every_step_is_its_segments(trainer)
    each_sample_is_trained_or_waits(trainer, steps, range(6))


def test_torch_compile(make_trainer, make_model):
    """
    Traced and run by Python; the probe looks through the wrapper.

    Tracing is what takes time: the model has one layer, and all three schedules use the same traces.
    """
    model = make_model(num_hidden_layers=1)
    for name in THREE:
        trainer = make_trainer(model=model, torch_compile=True, torch_compile_backend="eager", **SCHEDULES[name])
        assert_every_step_is_its_segments(trainer)


@pytest.mark.parametrize("name", THREE)
def test_gradient_checkpointing(make_trainer, name):
    trainer = make_trainer(gradient_checkpointing=True, learning_rate=0.0, **SCHEDULES[name])
    forwards = []
    layer = trainer.model.model.layers[0].mlp
    layer.register_forward_pre_hook(
        lambda module, _: forwards.append(1) if module is layer and layer.training else None
    )
    assert_every_step_is_its_segments(trainer)
    assert len(forwards) == 2 * trainer.args.gradient_accumulation_steps, "each layer runs again in the backward"


def lora(model, **overrides):
    """Adapters that are not zero at the start, so that both of their matrices have a gradient."""
    set_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **overrides)
    return get_peft_model(model, config)


@pytest.mark.parametrize("name", THREE)
def test_lora(make_trainer, make_model, name):
    model = lora(make_model())
    trainer = make_trainer(model=model, learning_rate=0.0, **SCHEDULES[name])
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    steps = assert_every_step_is_its_segments(trainer)
    adapters = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    assert trainer.catcher.gradients[0].numel() == adapters, "nothing but the adapters is trained"
    assert trainer.catcher.gradients[0].norm() > 0
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert sum(len(segments) for segments in steps) + len(trainer.schedule.waiting) == 9


def test_lora_checkpoints_resume_bit_for_bit(make_trainer, make_model, tmp_path):
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2, **WINDOW}

    def adapters_after(run, **overrides):
        model = lora(make_model(torch.float32))
        trainer = make_trainer(model=model, dtype=torch.float32, output_dir=str(tmp_path / run), **settings)
        trainer.train(**overrides)
        return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}

    whole = adapters_after("run")
    again = adapters_after("run", resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    start = {n: p for n, p in lora(make_model(torch.float32)).named_parameters() if "lora_" in n}
    assert all(torch.equal(whole[n], again[n]) for n in whole)
    assert not any(torch.equal(whole[n], start[n]) for n in whole), "the adapters did learn"


def test_a_mixture_of_experts(make_trainer, tokenizer):
    set_seed(0)
    shape = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        moe_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.float64, experts_implementation="eager")
    assert_every_step_is_its_segments(make_trainer(model=model, learning_rate=0.0, **WINDOW))
    model.config.output_router_logits = True
    with pytest.raises(ValueError, match=r"auxiliary loss is a mean over the tokens of one forward"):
        make_trainer(model=model, **WINDOW)


@pytest.mark.parametrize("name", ["no packing", "micro", "window, dense", "window, balanced"])
def test_float32_packed_is_float32_one_by_one(make_trainer, make_model, name):
    trainer = make_trainer(model=make_model(torch.float32), learning_rate=0.0, **SCHEDULES[name])
    assert_every_step_is_its_segments(trainer, bound=1e-5)


@pytest.mark.parametrize("name", THREE)
def test_bfloat16_errs_by_rounding_and_no_more(make_trainer, make_model, name, record_property):
    """Against the float64 gradient the packs are as good as their segments one by one in the same precision."""
    model = make_model(torch.float32)
    plain, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    trainer = make_trainer(model=model, bf16=True, **SCHEDULES[name])
    trainer.train()
    segments = trained(trainer)
    _, truth = one_by_one(exact, segments)
    with torch.autocast("cpu", torch.bfloat16):
        _, alone = one_by_one(plain, segments)
    packed = trainer.catcher.gradients[0].double()
    errors = {
        "packed": relative_difference(packed, truth),
        "alone": relative_difference(alone.double(), truth),
        "apart": relative_difference(packed, alone.double()),
    }
    record_property("bfloat16", errors)
    print(name, errors)
    assert 1e-4 < errors["alone"] < 5e-2, "this was not bfloat16, or the model is too rough to say anything"
    assert errors["packed"] < 1.5 * errors["alone"]
    assert errors["apart"] < 2 * errors["alone"]


def test_dropout_is_announced_once_with_its_size(make_trainer, make_model, caplog):
    make_trainer(model=make_model(), **WINDOW)
    assert "dropout" not in caplog.text
    make_trainer(model=make_model(attention_dropout=0.1), packing=False)
    assert "dropout" not in caplog.text, "without packing there is nothing to say"
    with caplog.at_level(logging.WARNING):
        make_trainer(model=make_model(attention_dropout=0.1), **WINDOW)
        make_trainer(model=lora(make_model(), lora_dropout=0.25), **WINDOW)
    sizes = [record.args[0] for record in caplog.records if "gradients agree in expectation" in record.getMessage()]
    assert sizes == [0.1, 0.25]


def test_dropout_changes_the_gradient_and_leaves_the_validation_exact(make_trainer, make_model):
    model = make_model(attention_dropout=0.3)
    reference = copy.deepcopy(model).eval()
    trainer = make_trainer(model=model, validate_schedule="every_window", **WINDOW)
    trainer.train()
    _, expected = one_by_one(reference, trained(trainer))
    assert relative_difference(trainer.catcher.gradients[0], expected) > 1e-3, "there was no dropout"
    assert trainer.state.log_history[0]["equivalence/gradient"] < 1e-10


REFUSED = {
    "auto_find_batch_size": (True, "retries a window"),
    "label_smoothing_factor": (0.1, "do not smooth"),
    "neftune_noise_alpha": (5.0, "noise depends on the length of the packed row"),
    "use_liger_kernel": (True, "does not know per-token weights"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_the_gradient_is_refused_with_its_reason(name, tmp_path):
    value, reason = REFUSED[name]
    with pytest.raises(ValueError, match=f"training.{name} is {value}, which is refused: .*{reason}"):
        RolloutSFTConfig(output_dir=str(tmp_path), global_max_length=64, use_cpu=True, **{name: value})


def test_data_parallel_is_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))  # this machine has no GPU
    with pytest.raises(ValueError, match=r"2 GPUs in one process.*DataParallel.*one process per GPU"):
        RolloutSFTConfig(output_dir=str(tmp_path), global_max_length=64, use_cpu=True)


def test_operations_are_those_that_the_trainer_counts_in_each_micro_step(make_trainer):
    trainer = make_trainer()
    for width in (1, 0, 7):
        inputs = {"input_ids": torch.zeros((1, width), dtype=torch.int64)}
        assert trainer.floating_point_ops(inputs) == Trainer.floating_point_ops(trainer, inputs)
    assert trainer.floating_point_ops(inputs) > 0
