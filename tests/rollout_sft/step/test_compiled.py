"""`torch_compile: true` changes no gradient, though packs have other lengths in every step."""

import pytest
import torch
from transformers import AutoModelForCausalLM, set_seed

from examples.digits.data import DigitsDataset
from rollout_sft import RolloutSFTTrainer
from tests.tiny import tiny_arguments
from tests.tiny_families import tiny_config


def train(folder, tokenizer, family, **overrides):
    """Three steps with rollouts of the compiled model."""
    torch._dynamo.reset()
    set_seed(0)
    config = tiny_config(family, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    trainer = RolloutSFTTrainer(
        model=AutoModelForCausalLM.from_config(config, dtype=torch.float32),
        args=tiny_arguments(
            folder,
            max_steps=3,
            optim="sgd",
            learning_rate=0.05,
            lr_scheduler_type="constant",
            logging_steps=1,
            decoding={"max_new_tokens": 4},
            post_rollout_pack_scope="window",
            **overrides,
        ),
        processing_class=tokenizer,
        train_dataset=DigitsDataset("train", 27, seed=5, max_digits=3),
    )
    trainer.train()
    return trainer


@pytest.mark.families
@pytest.mark.parametrize("family", ["qwen3", "lfm2"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_takes_the_same_steps(tmp_path, tokenizer, family, backend):
    plain = train(tmp_path / "plain", tokenizer, family)
    compiled = train(tmp_path / "compiled", tokenizer, family, torch_compile=True, torch_compile_backend=backend)
    assert hasattr(compiled.model_wrapped, "_orig_mod")
    norms = [[line["grad_norm"] for line in t.state.log_history if "loss" in line] for t in (plain, compiled)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    weights = zip(plain.model.parameters(), compiled.accelerator.unwrap_model(compiled.model).parameters(), strict=True)
    assert max(float((one - other).abs().max()) for one, other in weights) < 1e-5
