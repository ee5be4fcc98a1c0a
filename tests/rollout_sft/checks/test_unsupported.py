"""What a trainer refuses when it is made or started, and what it says."""

import logging

import pytest
import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from torch.utils.data import IterableDataset
from transformers import Qwen3ForCausalLM, TrainingArguments

from examples.digits.data import DigitsDataset
from rollout_sft import RolloutSFTConfig, RolloutSFTTrainer
from rollout_sft.checks.unsupported import check_best_metric, warn_about_dropout, warn_about_missing_end
from rollout_sft.inputs.segment import Segment
from rollout_sft.targets.base import Target
from tests.rollout_sft.test_trainer import WINDOW, lora
from tests.tiny import tiny_arguments


class Rows:
    """Samples with a length, without some of their keys."""

    def __init__(self, size, without=()):
        self.samples = DigitsDataset("eval", max(1, size), seed=1, max_digits=3)
        self.size, self.without = size, without

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {key: value for key, value in self.samples[index].items() if key not in self.without}


class Stream(IterableDataset):
    def __init__(self, size):
        self.rows = Rows(size)

    def __iter__(self):
        return (self.rows[i] for i in range(len(self.rows)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim": "adamw_bnb_8bit"}, r"^training.optim is adamw_bnb_8bit, which cannot be used here: .*bitsandbytes"),
        ({"optim": "galore_adamw"}, r"^training.optim is galore_adamw, which cannot be used here: .*galore_torch"),
        ({"report_to": ["mlflow"]}, r"^training.report_to is mlflow, which cannot be used here: .* mlflow to be inst"),
    ],
)
def test_a_missing_package_is_named_with_its_key_before_anything_runs(make_trainer, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**settings, **WINDOW)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_scheduler_kwargs": {"min_lr": 1e-5}}, r"is linear, which cannot be made with .*argument 'min_lr'"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "is cosine_with_min_lr, which cannot be made without lr_sched"),
    ],
)
def test_a_schedule_that_cannot_be_made_is_refused_before_anything_runs(make_trainer, settings, message):
    with pytest.raises(ValueError, match=rf"^training\.lr_scheduler_type {message}"):
        make_trainer(**settings, **WINDOW)


def test_a_metric_that_evaluation_does_not_report_is_refused_before_training(tmp_path):
    reported = {"eval_rollout/f1": 0.0, "eval_answers/right": 0.5, "eval_runtime": 1.0, "eval_samples_per_second": 2.0}
    for name in ("rollout/f1", "eval_rollout/f1"):
        check_best_metric(reported, tiny_arguments(tmp_path, metric_for_best_model=name))
    check_best_metric({}, tiny_arguments(tmp_path, metric_for_best_model="f1"))
    with pytest.raises(
        ValueError, match=r"is 'f1', which evaluation does not report; .* one of rollout/f1, answers/right"
    ):
        check_best_metric(reported, tiny_arguments(tmp_path, metric_for_best_model="f1"))


def test_an_optimizer_of_the_user_s_own_is_not_judged_by_training_optim(make_model, tokenizer, tmp_path):
    model = make_model()
    args = tiny_arguments(tmp_path, optim="adamw_bnb_8bit", **WINDOW)
    optimizers = (torch.optim.SGD(model.parameters(), lr=0.1), None)
    trainer = RolloutSFTTrainer(model=model, args=args, processing_class=tokenizer, optimizers=optimizers)
    assert trainer.optimizer is optimizers[0]


@pytest.mark.parametrize("max_steps", [-1, 2])
def test_an_empty_data_set_is_named(make_trainer, max_steps):
    with pytest.raises(ValueError, match=r"the training data set has 0 samples.*check data.train"):
        make_trainer(train=Rows(0), max_steps=max_steps, **WINDOW).train()


def test_a_data_set_that_would_be_dropped_whole_is_named_with_the_numbers(make_trainer):
    settings = {"per_device_train_batch_size": 3, "dataloader_drop_last": True, **WINDOW}
    message = r"has 2 samples, fewer than a micro-batch of 3 on each of 1 ranks.*dataloader_drop_last"
    with pytest.raises(ValueError, match=message):
        make_trainer(train=Rows(2), **settings).train()
    trainer = make_trainer(train=Rows(3), **settings)
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("scope", ["micro", "window"])
def test_an_empty_stream_is_named_and_one_that_ends_is_not(make_trainer, scope):
    with pytest.raises(ValueError, match=r"gave no sample on any rank before step 1"):
        make_trainer(train=Stream(0), post_rollout_pack_scope=scope).train()
    trainer = make_trainer(train=Stream(9), post_rollout_pack_scope=scope, max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2, "the second step's data begins with a new pass"


def test_samples_without_an_id_are_trained_and_named_in_evaluation(make_trainer):
    rows = Rows(9, without=("id",))
    trainer = make_trainer(train=rows, evaluation=rows, **WINDOW)
    trainer.train()
    assert trainer.state.global_step == 1
    message = r"sample 0 of the evaluation batch has no 'id', only \['objects', 'prompt_ids'\].*Give every evaluation"
    with pytest.raises(ValueError, match=message):
        trainer.evaluate()


HOOKS = {
    "data_collator": "packs are built from raw samples",
    "compute_loss_func": r"divided by the weight of the whole window\. Set the weights in a TargetBuilder",
    "compute_metrics": r"evaluation scores rollouts.*TargetBuilder\.score",
    "preprocess_logits_for_metrics": r"evaluation scores rollouts.*TargetBuilder\.score",
}


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_that_would_never_be_called_are_refused(tmp_path, tokenizer, make_model, name):
    def make(hook):
        given = {"model": make_model(), "args": tiny_arguments(tmp_path), "processing_class": tokenizer, name: hook}
        return RolloutSFTTrainer(train_dataset=Rows(9), **given)

    with pytest.raises(ValueError, match=f"{name} is refused, since it would never be called: .*{HOOKS[name]}"):
        make(lambda *_: None)
    trainer = make(None)
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("kind", [PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig])
def test_virtual_tokens_are_refused(make_trainer, make_model, kind, packing):
    config = kind(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = get_peft_model(make_model(), config)
    with pytest.raises(ValueError, match=rf"adapter is {config.peft_type.value} with 4 virtual tokens.*such as LoRA"):
        make_trainer(model=model, packing=packing)


def test_an_adapter_in_the_weights_is_not(make_trainer, make_model):
    trainer = make_trainer(model=lora(make_model()), **WINDOW)
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": None}, r"model is None; give a model"),
        ({"model": "Qwen/Qwen3-0.6B"}, r"model is the text 'Qwen/Qwen3-0\.6B'; give a model with its weights"),
        ({"model": Qwen3ForCausalLM}, r"model is the class Qwen3ForCausalLM; give a model with its weights"),
        ({"args": None}, r"args is None; give a RolloutSFTConfig"),
        ({"args": "run.yaml"}, r"args is the text 'run\.yaml'; give a RolloutSFTConfig"),
        ({"args": RolloutSFTConfig}, r"args is the class RolloutSFTConfig; give a RolloutSFTConfig"),
        ({"args": TrainingArguments(use_cpu=True)}, r"args is a TrainingArguments; give a RolloutSFTConfig"),
    ],
)
def test_a_wrong_model_or_args_is_refused_by_name(tmp_path, tokenizer, make_model, wrong, message):
    right = {"model": make_model(), "args": tiny_arguments(tmp_path), "processing_class": tokenizer}
    with pytest.raises(ValueError, match=message):
        RolloutSFTTrainer(**{**right, **wrong})


@pytest.mark.parametrize("rates", [(0.1, 0.3, 0.2), (0.3, 0.0), (0.0, 0.3)])
def test_the_largest_dropout_is_the_one_announced(rates, caplog):
    model = torch.nn.Sequential(*map(torch.nn.Dropout, rates))
    with caplog.at_level(logging.WARNING, logger="rollout_sft.checks.unsupported"):
        assert warn_about_dropout(model) == 0.3
    assert "dropout up to 0.3: " in caplog.text


def test_without_dropout_nothing_is_announced(caplog):
    assert warn_about_dropout(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.0))) == 0.0
    assert not caplog.records


def test_a_builder_that_forgets_the_end_token_is_warned_of(caplog):
    forgetful = Segment.from_lists([1, 2, 3, 4], [0, 3, 4, 0], [0, 1, 1, 0])
    untrained = Segment.from_lists([1, 2, 3, 9], [0, 3, 9, 0], [0, 1, 0, 0])
    ending = Segment.from_lists([1, 2, 3, 9], [0, 3, 9, 0], [0, 1, 1, 0])
    assert warn_about_missing_end([forgetful, untrained], 9)
    assert "none of the 2 segments of the first window trains the end token (id 9)" in caplog.text
    assert "append" in caplog.text
    assert not warn_about_missing_end([forgetful, ending], 9)
    assert not warn_about_missing_end([], 9), "a rank without data"


class Forgetful:
    """A target builder that trains the tokens of the rollout as they come."""

    def build(self, sample, rollout):
        ids = [*sample["prompt_ids"], *rollout.response_ids]
        weights = [0.0, *([1.0] * (len(ids) - 2)), 0.0]
        return Target(segment=Segment.from_lists(ids, [*ids[1:], 0], weights), counters={})

    build_reference = score = None


def test_the_first_window_of_training_is_looked_at(make_trainer, caplog):
    make_trainer(builder=Forgetful(), post_rollout_pack_scope="window", max_steps=2).train()
    assert caplog.text.count("trains the end token") == 1
    caplog.clear()
    make_trainer(post_rollout_pack_scope="window").train()
    assert "trains the end token" not in caplog.text
