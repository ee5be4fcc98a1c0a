"""Optimizers with small states run and resume bit for bit; those that step inside a backward are refused."""

from importlib.util import find_spec

import pytest
import torch

from examples.digits.data import DigitsDataset
from rollout_sft import RolloutSFTTrainer
from tests.tiny import tiny_arguments

BITSANDBYTES = ("adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit", "ademamix_8bit", "rmsprop_bnb_8bit")
TORCHAO = ("adamw_torch_8bit", "adamw_torch_4bit")


def make_trainer(folder, make_model, tokenizer, **overrides):
    arguments = {"reference_fraction": 1.0, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "max_steps": 4}
    return RolloutSFTTrainer(
        model=make_model(torch.float32, hidden_size=128, intermediate_size=256),
        args=tiny_arguments(folder, **{**arguments, "save_strategy": "steps", "save_steps": 2, **overrides}),
        processing_class=tokenizer,
        train_dataset=DigitsDataset("train", 36, seed=5, max_digits=3),
    )


@pytest.mark.parametrize(
    ("optim", "package"),
    [*((name, "bitsandbytes") for name in BITSANDBYTES), *((name, "torchao") for name in TORCHAO)],
)
def test_a_small_optimizer_trains_like_a_whole_one_and_resumes(tmp_path, make_model, tokenizer, optim, package):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    whole = make_trainer(tmp_path / "whole", make_model, tokenizer, optim=optim)
    whole.train()
    resumed = make_trainer(tmp_path / "parts", make_model, tokenizer, optim=optim)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    if "8bit" in optim and package == "bitsandbytes":
        kinds = {v.dtype for s in whole.optimizer.state.values() for v in s.values() if torch.is_tensor(v)}
        assert torch.uint8 in kinds, "the state is held in 8 bits"
    if "adamw" in optim and "4bit" not in optim:
        adamw = make_trainer(tmp_path / "adamw", make_model, tokenizer, optim="adamw_torch")
        adamw.train()
        losses = [[line["loss"] for line in t.state.log_history if "loss" in line] for t in (whole, adamw)]
        assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize("optim", ["lomo", "adalomo", "galore_adamw_layerwise", "apollo_adamw_layerwise"])
def test_an_optimizer_that_steps_inside_a_backward_is_refused(tmp_path, optim):
    with pytest.raises(ValueError, match=rf"training\.optim is {optim}, which is refused: it changes the weights"):
        tiny_arguments(tmp_path, optim=optim)
