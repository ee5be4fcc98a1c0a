"""Every field of arguments, model, adapter and image processor is compared, or it is listed as free in decision 12."""

import copy
import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig

from rollout_sft import RolloutSFTConfig
from rollout_sft.checkpoint.data_fingerprint import fingerprint
from rollout_sft.checkpoint.described_parts import describe_parts, digest_base, flat
from rollout_sft.checkpoint.settings import trained_with
from tests.tiny import tiny_arguments
from tests.tiny_images import CONFIGS

DECISION = Path(__file__).parents[3] / "docs" / "decisions" / "0012-what-a-resumed-run-may-change.md"
TABLE = DECISION.read_text().partition("Free to change:")[2].partition("What changes only")[0]
FREE = set(re.findall(r"`([a-z_]+)`", TABLE))
PREFIXES = tuple(re.findall(r"`([a-z_]+)\*`", TABLE))
DATA = {"data.train": "18 samples, 0"}


def is_free(name):
    return name in FREE or name.startswith(PREFIXES)


def other(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return {"changed": 1} if isinstance(value, dict) else "changed"


def settings_of(config, data=DATA):
    return trained_with(config, {}, data)["settings"]


@pytest.mark.parametrize("spec", [s for s in fields(RolloutSFTConfig) if s.name != "vllm"], ids=lambda spec: spec.name)
def test_every_argument_is_compared_or_listed_as_free(tmp_path, spec):
    config = tiny_arguments(tmp_path)
    before = settings_of(config)
    object.__setattr__(config, spec.name, other(getattr(config, spec.name)))
    assert (settings_of(config) == before) == is_free(spec.name)


def test_of_vllm_counts_what_shapes_the_answers(tmp_path):
    config = tiny_arguments(tmp_path)
    for spec in fields(config.vllm):
        changed = copy.copy(config)
        changed.vllm = copy.copy(config.vllm)
        object.__setattr__(changed.vllm, spec.name, other(getattr(config.vllm, spec.name)))
        assert (settings_of(changed) == settings_of(config)) == is_free(spec.name), spec.name


def test_what_decides_only_sometimes_is_compared_then(tmp_path):
    config, streamed = tiny_arguments(tmp_path), tiny_arguments(tmp_path, dataloader_num_workers=1)
    assert settings_of(config) == settings_of(streamed)
    assert settings_of(config, fingerprint(iter([]))) != settings_of(streamed, fingerprint(iter([])))
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 1}
    pair = [tiny_arguments(tmp_path, **plateau, metric_for_best_model=name) for name in ("loss", "f1")]
    assert settings_of(pair[0]) != settings_of(pair[1])


def test_the_content_of_a_deepspeed_file_counts(tmp_path):
    config = tiny_arguments(tmp_path)
    config.deepspeed = str(tmp_path / "ds.json")
    found = []
    for stage in (1, 2):
        (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        found.append(settings_of(config)["training.deepspeed"]["zero_optimization"]["stage"])
    assert found == [1, 2]


def differing(before, after):
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


FAMILIES = ("llama", "gemma3_text", "qwen3_moe", "phi3", "mixtral", "mamba2", "deepseek_v3")


@pytest.mark.parametrize("family", [*FAMILIES, *CONFIGS])
def test_every_field_of_a_configuration_is_compared(family):
    whole = AutoConfig.for_model(family, **CONFIGS.get(family, {})).to_dict()
    before = flat("model.config", whole)
    compared = 0

    def walk(values, path):
        nonlocal compared
        for name, value in values.items():
            key = f"{path}.{name}"
            if isinstance(value, dict) and value:
                walk(value, key)
                continue
            values[name] = other(value)
            expected = set() if is_free(str(name)) else {key}
            found = differing(before, flat("model.config", whole))
            assert found == expected or (expected and all(k.startswith(key) for k in found)), key
            values[name] = value
            compared += bool(expected)

    walk(whole, "model.config")
    assert compared > 20


def test_every_field_of_an_adapter_is_compared(make_model, tokenizer):
    model = get_peft_model(make_model(torch.float32), LoraConfig(target_modules=["q_proj", "v_proj"]))
    before = describe_parts(model, tokenizer=tokenizer)
    assert before["model.peft.target_modules"] == ["q_proj", "v_proj"], "a set has no order of its own"
    adapter = model.peft_config["default"]
    for name, value in adapter.to_dict().items():
        setattr(adapter, name, other(value))
        found = differing(before, describe_parts(model, tokenizer=tokenizer))
        setattr(adapter, name, value)
        assert bool(found) != is_free(name), name
        assert all(key.startswith(f"model.peft.{name}") for key in found)


def test_a_digest_counts_every_value_below_an_adapter_and_no_other(make_model):
    model = make_model(torch.float32)
    assert digest_base(model) is None, "a checkpoint holds all of it"
    model.register_buffer("kept", torch.zeros(3))
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    before = digest_base(adapted)
    for name, tensor in adapted.state_dict(keep_vars=True).items():
        for at in (0, -1):
            value = tensor.data.view(-1)[at].clone()
            tensor.data.view(-1)[at] += 1
            assert (digest_base(adapted) != before) == (not tensor.requires_grad), name
            tensor.data.view(-1)[at] = value
    assert digest_base(adapted) == before


def test_a_tokenizer_counts_with_its_rules_and_not_with_its_last_call(make_model, tokenizer):
    model = make_model(torch.float32)
    before = describe_parts(model, tokenizer=tokenizer)
    changed = copy.deepcopy(tokenizer)
    changed(["1", "1 2 3"], padding=True, truncation=True, max_length=2)
    assert differing(before, describe_parts(model, tokenizer=changed)) == set()
    changed.chat_template = "{{ messages }}"
    assert differing(before, describe_parts(model, tokenizer=changed)) == {"tokenizer.chat_template"}
    changed = copy.deepcopy(tokenizer)
    changed.add_tokens(["<new>"])
    assert "tokenizer" in differing(before, describe_parts(model, tokenizer=changed))


def test_optimizers_that_were_passed_count(make_model, tokenizer):
    model = make_model(torch.float32)
    pairs = [(torch.optim.AdamW(model.parameters(), lr=rate), None) for rate in (1e-3, 1e-3, 1e-4)]
    same, again, slower = (describe_parts(model, tokenizer=tokenizer, optimizers=pair) for pair in pairs)
    assert differing(same, again) == set()
    assert differing(same, slower) == {"optimizer.groups"}
    assert same["optimizer"] == "torch.optim.adamw:AdamW"


@pytest.mark.parametrize("kind", ["text", "adapter"])
def test_the_trainer_describes_what_was_described_before_it_was_made(make_model, make_trainer, tokenizer, kind):
    model = make_model(torch.float32)
    if kind == "adapter":
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    before = describe_parts(model, tokenizer=tokenizer)
    trainer = make_trainer(model=model, post_rollout_pack_scope="window", reference_fraction=1.0)
    trainer.train()
    described = {k: v for k, v in trainer.described.items() if k != "target_builder"}
    assert described == before
    assert before.items() <= trainer.trained_with["settings"].items()


def test_samples_that_are_drawn_at_random_are_not_compared():
    class Drawn:
        def __len__(self):
            return 40

        def __getitem__(self, index):
            return {"id": index, "noise": torch.rand(2)}

    assert fingerprint(Drawn()) == {"data.train": "40 samples, which differ at every reading"}
    state = torch.get_rng_state()
    fingerprint(Drawn())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("value", "changed"),
    [
        ([1, 2], [1, 3]),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])),
        (torch.ones(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16)),
        (np.array(["a", "b"], dtype=object), np.array(["a", "c"], dtype=object)),
        (np.float32(1), np.float32(2)),
        (b"a", b"b"),
        ({"deep": [b"a"]}, {"deep": [b"b"]}),
    ],
    ids=str,
)
def test_every_column_of_a_sample_counts(value, changed):
    def of(reference):
        return fingerprint([{"id": 1, "prompt_ids": [1], "reference": reference}])

    assert of(value) == of(copy.deepcopy(value))
    assert of(value) != of(changed)
