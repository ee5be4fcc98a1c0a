"""The model, its image processor and what stays frozen, from the section `model`."""

import re

import pytest
import torch
from PIL import Image as Pictures
from transformers import AutoConfig, AutoModelForCausalLM

from examples.digits.tokenizer import build_digits_tokenizer
from rollout_sft.config.sections import ModelSpec
from rollout_sft.model.image_processor import load_image_processor
from rollout_sft.model.loading import load_config, load_model, reads_images
from tests.rollout_sft.data.image_models import CONFIG, TOKENS, image_tokenizer
from tests.rollout_sft.data.image_models import image_spec as spec
from tests.rollout_sft.targets.tokenizers import MAKERS

TEXT, VISION = CONFIG["text_config"], CONFIG["vision_config"]


@pytest.fixture(scope="module")
def tokenizer():
    return image_tokenizer()


def test_an_image_model_takes_its_tokens_from_the_tokenizer(tokenizer):
    config = load_config(spec(), tokenizer)
    ids = [config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id]
    assert ids == tokenizer.convert_tokens_to_ids(TOKENS)
    assert (config.text_config.vocab_size, config.text_config.eos_token_id) == (len(tokenizer), tokenizer.eos_token_id)
    assert load_config(spec({**CONFIG, "image_token_id": 7}), tokenizer).image_token_id == 7


def test_a_tokenizer_without_image_tokens_is_refused():
    with pytest.raises(ValueError, match=r"tokenizer has no token <\|image_pad\|>, .*Add them"):
        load_config(spec(), MAKERS["words"]())


@pytest.mark.parametrize("shared", [3, 8])
def test_heads_that_cannot_share_their_keys_are_refused(shared):
    fields = {"model_type": "qwen2", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": shared}
    with pytest.raises(ValueError, match=f"^model.config.num_attention_heads is 4 and num_key_value_heads {shared}; "):
        load_config(spec(fields), MAKERS["words"]())


def test_other_image_models_are_not_built_from_fields(tokenizer):
    with pytest.raises(ValueError, match=r"builds the image models qwen2_vl.*, and model_type is internvl; save"):
        load_config(spec({"model_type": "internvl"}), tokenizer)


def test_a_saved_image_model_is_loaded_whole(tokenizer, tmp_path):
    built = load_model(spec(), tokenizer, seed=0)
    built.save_pretrained(tmp_path)
    loaded = load_model(ModelSpec(model_name_or_path=str(tmp_path)), tokenizer, seed=1)
    assert type(loaded) is type(built)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), built.parameters(), strict=True))
    assert any(name.startswith("model.visual.") for name, _ in loaded.named_parameters())


def test_the_text_half_of_an_image_model_is_not_taken_for_it(tokenizer):
    fields = {**TEXT, "layer_types": ["full_attention"]}
    config = load_config(spec({"model_type": "qwen3_5", "text_config": fields, "vision_config": VISION}), tokenizer)
    assert reads_images(config)
    assert not reads_images(config.text_config)
    assert not hasattr(AutoModelForCausalLM.from_config(config).model, "visual"), "what transformers itself does"
    model = load_model(
        spec({"model_type": "qwen3_5", "text_config": fields, "vision_config": VISION}), tokenizer, seed=0
    )
    assert hasattr(model.model, "visual")


def test_the_image_processor_fits_a_model_that_was_built(tokenizer):
    config = load_config(spec(), tokenizer)
    processor = load_image_processor(spec(), config)
    made = processor(images=[Pictures.new("RGB", (40, 24), (255, 0, 0))], return_tensors="pt")
    assert made["image_grid_thw"].tolist() == [[1, 6, 10]], "not enlarged"
    assert made["pixel_values"].shape == (60, 3 * 2 * 4 * 4)
    assert (made["pixel_values"].min().item(), made["pixel_values"].max().item()) == (-1, 1)


def test_limits_of_pixels_reach_the_image_processor(tokenizer):
    config = load_config(spec(), tokenizer)
    processor = load_image_processor(spec(min_pixels=256, max_pixels=1024), config)
    sizes = [
        processor(images=[Pictures.new("RGB", size)], return_tensors="pt")["image_grid_thw"].prod().item() * 16
        for size in ((1, 1), (400, 400))
    ]
    assert sizes == [256, 1024]


def test_a_saved_image_processor_is_loaded_without_torchvision(tokenizer, tmp_path):
    made = load_image_processor(spec(max_pixels=4096), load_config(spec(), tokenizer))
    made.save_pretrained(tmp_path)
    load_config(spec(), tokenizer).save_pretrained(tmp_path)
    named = ModelSpec(model_name_or_path=str(tmp_path))
    loaded = load_image_processor(named, load_config(named, tokenizer))
    assert type(loaded) is type(made)
    assert loaded.to_dict() == made.to_dict()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"min_pixels": 2000, "max_pixels": 1000}, r"2000 \(model.min_pixels\) to 1000 pixels"),
        ({"max_pixels": 63, "min_pixels": 1}, "a token takes 64; give min_pixels <= max_pixels and max_pixels >= 64"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(tokenizer, limits, message):
    with pytest.raises(ValueError, match=message):
        load_image_processor(spec(**limits), load_config(spec(), tokenizer))


def test_limits_for_a_model_that_has_none_are_refused():
    with pytest.raises(ValueError, match=r"model\.max_pixels is 9, but only qwen2_vl.* and this model is a internvl"):
        load_image_processor(ModelSpec(model_name_or_path="x", max_pixels=9), AutoConfig.for_model("internvl"))


def test_frozen_parameters_are_those_that_a_pattern_matches(tokenizer):
    model = load_model(spec(freeze=["model.visual.*", "lm_head.weight"]), tokenizer, seed=0)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith("model.visual.") or n == "lm_head.weight"}
    assert frozen != set(dict(model.named_parameters()))


def test_a_pattern_that_matches_nothing_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"model\.freeze has 'visual\.\*', which matches none of .* model\.visual"):
        load_model(spec(freeze=["visual.*"]), tokenizer, seed=0)
    with pytest.raises(ValueError, match=r"model\.freeze is \['\*'\], which leaves no parameter to train"):
        load_model(spec(freeze=["*"]), tokenizer, seed=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "qwen3", "head_dimm": 16},
            "model.config.head_dimm is 16, but qwen3 has no such field; did you mean head_dim?",
        ),
        (
            {"model_type": "qwen3_vl", "vision_config": {"depht": 2}},
            "model.config.vision_config.depht is 2, but qwen3_vl_vision has no such field; did you mean depth?",
        ),
        (
            {"model_type": "qwen3_vl", "num_hidden_layers": 2},
            "model.config.num_hidden_layers is 2, but qwen3_vl has this field in text_config; move it to "
            "model.config.text_config.",
        ),
        (
            {"model_type": "qwen3", "text_config": {"hidden_size": 4}},
            "model.config.text_config is {'hidden_size': 4}, but qwen3 is a text model; move its fields up to "
            "model.config.",
        ),
        (
            {"model_type": "qwen3", "vision_config": {"depth": 4}},
            "model.config.vision_config is {'depth': 4}, but qwen3 has no such part; leave it out",
        ),
        (
            {"model_type": "qwen-3"},
            "model.config.model_type is 'qwen-3', which transformers does not know; did you mean",
        ),
        ({"model_type": "qwen-3"}, "did you mean qwen3?"),
        ({"model_type": "qwen3", "vocab_size": 20}, "model.config.vocab_size is 20, but the tokenizer has"),
    ],
)
def test_a_field_that_would_do_nothing_or_fail_late_is_refused(config, message):
    spec = ModelSpec(config=config, tokenizer_name_or_path="x")
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(spec, build_digits_tokenizer())


@pytest.mark.parametrize(
    ("model_type", "name", "meant"),
    [
        ("qwen3", "num_layers", "num_hidden_layers"),
        ("qwen3", "num_heads", "num_attention_heads"),
        ("qwen3", "n_layer", "num_hidden_layers"),
        ("qwen3", "n_head", "num_attention_heads"),
        ("qwen3", "d_model", "hidden_size"),
        ("qwen3", "ffn_dim", "intermediate_size"),
        ("qwen3", "max_seq_len", "max_position_embeddings"),
        ("qwen3", "dropout", "attention_dropout"),
        ("gpt2", "ffn_dim", "n_inner"),
        ("mixtral", "num_layers", "num_hidden_layers"),
    ],
)
def test_the_field_of_another_family_is_answered_with_the_one_of_this(model_type, name, meant):
    spec = ModelSpec(config={"model_type": model_type, name: 2}, tokenizer_name_or_path="x")
    with pytest.raises(ValueError, match=rf"config\.{name} is 2, but {model_type} has no .*did you mean {meant}\?"):
        load_config(spec, build_digits_tokenizer())


@pytest.mark.parametrize(
    ("model_type", "field", "read_as"),
    [
        ("gpt2", {"num_hidden_layers": 2}, {"n_layer": 2}),  # the class maps it
        ("qwen3", {"rope_theta": 500.0}, {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}),
        ("mixtral", {"router_jitter_noise": 0.1}, {"router_jitter_noise": 0.1}),
        ("qwen3_moe", {"num_nextn_predict_layers": 1}, {"num_nextn_predict_layers": 1}),  # vLLM alone reads it
        ("llama", {"architectures": ["LlamaForCausalLM"], "transformers_version": "4.0", "torch_dtype": "float32"}, {}),
    ],
)
def test_names_that_the_model_reads_pass_although_the_class_lacks_them(model_type, field, read_as):
    spec = ModelSpec(config={"model_type": model_type, **field}, tokenizer_name_or_path="x")
    made = load_config(spec, build_digits_tokenizer())
    assert {name: getattr(made, name) for name in read_as} == read_as
