"""A real model, tokenizer, data set and trainer, small enough to run in a second."""

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback, set_seed

from examples.digits.data import DigitsDataset
from examples.digits.tokenizer import build_digits_tokenizer
from rollout_sft import RolloutSFTTrainer
from rollout_sft.targets.loading import make_target_builder
from tests.tiny import tiny_arguments, tiny_config


@pytest.fixture(scope="session")
def tokenizer():
    return build_digits_tokenizer()


@pytest.fixture
def make_model(tokenizer):
    def make(dtype=torch.float64, **overrides):
        set_seed(0)
        config = tiny_config(tokenizer, max_position_embeddings=1024, pad_token_id=tokenizer.pad_token_id, **overrides)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)

    return make


class Recorder:
    """A target builder that remembers every segment its inner one makes, in order."""

    def __init__(self, inner):
        self.inner = inner
        self.segments = []

    def _remember(self, target):
        self.segments.append(target.segment)
        return target

    def build(self, sample, rollout):
        return self._remember(self.inner.build(sample, rollout))

    def build_reference(self, sample):
        return self._remember(self.inner.build_reference(sample))

    def score(self, sample, rollout):
        return self.inner.score(sample, rollout)

    def response_reader(self):
        return self.inner.response_reader()


class GradientCatcher(TrainerCallback):
    """Keeps the gradient of every optimizer step."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(flat_gradient(model))


def flat_gradient(model):
    """Of all parameters that are trained, in their order; the indexer of qwen4_exp_text has none in short segments."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters() if p.requires_grad]
    return torch.cat([g.detach().reshape(-1).clone() for g in grads])


@pytest.fixture
def make_trainer(tmp_path, tokenizer, make_model):
    """Builds a trainer on digits; `recorder` and `catcher` hang on it."""

    def make(*, model=None, train=None, evaluation=None, dtype=torch.float64, backend=None, builder=None, **overrides):
        config = tiny_arguments(tmp_path / "run", **overrides)
        catcher, recorder = GradientCatcher(), Recorder(builder or make_target_builder(tokenizer, config))
        trainer = RolloutSFTTrainer(
            model=model or make_model(dtype),
            args=config,
            processing_class=tokenizer,
            train_dataset=DigitsDataset("train", 18, seed=5, max_digits=5) if train is None else train,
            eval_dataset=evaluation,
            callbacks=[catcher],
            rollout_backend=backend,
            target_builder=recorder,
        )
        trainer.recorder, trainer.catcher = recorder, catcher
        return trainer

    return make
