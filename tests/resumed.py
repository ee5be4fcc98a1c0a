"""Trains four steps, and the last two again from the checkpoint in a model with other weights: are both ends equal?"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, set_seed

from rollout_sft import RolloutSFTTrainer
from tests.image_runs import LONGEST, AnswerBuilder, adapter_of, make_samples
from tests.tiny import shard_on_cpus, tiny_arguments
from tests.tiny_families import tiny_config
from tests.tiny_images import CONFIGS, image_config, image_processor, image_tokenizer

TABLE = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "resume.json"
"""Family -> column -> `yes`, a number, or why it was not run."""
SAVED = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2, "logging_steps": 1}


def tiny_model(family, seed, dtype=torch.float32, **overrides):
    """A text or an image model of the family with random weights."""
    set_seed(seed)
    if family in CONFIGS:
        return AutoModelForImageTextToText.from_config(image_config(family), dtype=dtype)
    return AutoModelForCausalLM.from_config(tiny_config(family, **overrides), dtype=dtype)


def make_trainer(family, model, folder, *, evaluated=False, **overrides):
    """A trainer on windows of 2 x 2 samples without rollouts; image models get images."""
    sizes = [[(16, 24)], [], [(8, 16)], [], [(16, 16)], [], [], [(16, 8)]] if family in CONFIGS else [[]] * 8
    samples = make_samples(adapter_of(family, model) if family in CONFIGS else NoImages(), sizes)
    args = {"global_max_length": LONGEST.get(family, 64), "reference_fraction": 1.0, "check_isolation": False}
    args["decoding"] = {"max_new_tokens": 2}
    args |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "post_rollout_pack_scope": "window"}
    config = tiny_arguments(folder, **{**args, **SAVED, **overrides})
    if config.fsdp:
        shard_on_cpus(config)
    return RolloutSFTTrainer(
        model=model,
        args=config,
        processing_class=image_tokenizer(),
        image_processor=image_processor(family) if family in CONFIGS else None,
        train_dataset=samples,
        target_builder=AnswerBuilder(),
        eval_dataset=samples[:1] if evaluated else None,
    )


class NoImages:
    def expand(self, prompt, images):
        return prompt


def end_of(trainer):
    """The weights and the losses of a run."""
    losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    plain = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    whole = {n: t.full_tensor() if hasattr(t, "full_tensor") else t for n, t in plain.state_dict().items()}
    return {name: tensor.clone() for name, tensor in whole.items()}, losses


def with_adapter(family, seed, **overrides):
    """A LoRA adapter on the projections of weights that are the same for every seed."""
    model = tiny_model(family, 0)
    set_seed(seed)
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))


def whole_run(family, folder, make_model=tiny_model, **overrides):
    """The end of a run that nothing interrupts; its checkpoints stay in the folder."""
    trainer = make_trainer(family, make_model(family, 0), folder, **overrides)
    trainer.train()
    return end_of(trainer)


def resumed_run(family, folder, make_model=tiny_model, **overrides):
    """The end of the same run, resumed after two steps with other weights than it began with."""
    trainer = make_trainer(family, make_model(family, 1), folder, **overrides)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    return end_of(trainer)


def difference(family, folder, make_model=tiny_model, **overrides):
    """The difference between the two runs; see [`between`]."""
    pairs = zip(make_model(family, 0).parameters(), make_model(family, 1).parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in pairs), "both begin with the same weights: no test"
    whole = whole_run(family, folder, make_model, **overrides)
    return between(whole, resumed_run(family, folder, make_model, **overrides))


def between(one, other):
    """The largest difference of the weights and losses of two ends; 0 where both are equal in every bit."""
    (weights, losses), (again, losses_again) = one, other
    assert sorted(losses) == sorted(losses_again) == [1, 2, 3, 4]
    assert weights.keys() == again.keys()
    worst = max(abs(losses[step] - losses_again[step]) for step in losses)
    for name, tensor in weights.items():
        if not torch.equal(tensor, again[name]):
            worst = max(worst, float((tensor.double() - again[name].double()).abs().max()))
    return worst


def record(family, column, cell):
    """Keeps a cell of the table; a number where the runs differ, `yes` where they are equal."""
    found = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    number = max(cell) if isinstance(cell, tuple) else cell
    found.setdefault(family, {})[column] = number if isinstance(number, str) else "yes" if number == 0 else number
    TABLE.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
