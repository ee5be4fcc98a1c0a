"""The weights that an engine gets: the names and values of a saved checkpoint, whatever wraps the model."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from rollout_sft.inputs.choose import IMAGE_MODELS
from rollout_sft.rollouts.live_weights import LiveWeights
from tests.tiny_images import image_model

SMALL = {
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
}
KINDS = {
    "tied": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "untied": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": False},
    "llama": {"model_type": "llama"},
    "experts": {"model_type": "qwen3_moe", "head_dim": 16, "num_experts": 4, "moe_intermediate_size": 16},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4},
}


def build(kind):
    set_seed(0)
    config = {**SMALL, **KINDS[kind]}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))


def sent(model):
    return {name: tensor.clone() for name, tensor in LiveWeights(lambda: model).tensors()}


def assert_same(found, expected):
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_values_are_those_of_a_saved_checkpoint(kind, tmp_path):
    model = build(kind)
    model.save_pretrained(tmp_path)
    assert_same(sent(model), load_file(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("family", IMAGE_MODELS)
def test_an_image_model_sends_its_frozen_tower_too(family, tmp_path):
    model = image_model(family, torch.float32)
    tower = [p for name, p in model.named_parameters() if "vis" in name]
    assert tower
    for parameter in tower:
        parameter.requires_grad_(False)
    model.save_pretrained(tmp_path)
    assert_same(sent(model), load_file(tmp_path / "model.safetensors"))


@pytest.fixture
def adapted():
    peft = pytest.importorskip("peft", reason="peft is not installed: merged adapters are not tested")

    def make(kind="untied", **overrides):
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **overrides)
        return peft.get_peft_model(build(kind), config)

    return make


@pytest.mark.parametrize(
    "overrides",
    [{}, {"modules_to_save": ["lm_head"]}, {"use_dora": True}, {"trainable_token_indices": [3, 5]}],
    ids=["lora", "head", "dora", "tokens"],
)
def test_adapters_are_merged_as_peft_merges_them(adapted, overrides, tmp_path):
    model = adapted(**overrides)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name or "trainable_tokens" in name:
                parameter.add_(1.0)
    found = sent(model)
    plain = sent(build("untied"))
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path)
    assert_same(found, load_file(tmp_path / "model.safetensors"))
    assert any(not torch.equal(found[name], plain[name]) for name in plain), "nothing was merged"


def test_merging_leaves_every_trained_and_frozen_tensor_bit_for_bit(adapted):
    model = adapted()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):
        sent(model)
    after = dict(model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(getattr(m, "merged", False) for m in model.modules())


def test_a_disabled_or_already_merged_adapter_is_sent_as_it_stands(adapted):
    model = adapted()
    with model.disable_adapter():
        assert_same(sent(model), sent(build("untied")))
    found = sent(model)
    model.merge_adapter()
    assert_same(sent(model), found)


def test_the_version_grows_with_every_change():
    weights = LiveWeights(lambda: build("tied"))
    assert weights.version == 0
    weights.changed()
    weights.changed()
    assert weights.version == 2
