"""A tokenizer and an adapter of an image model without weights: a token covers 8 x 8 pixels."""

from rollout_sft.config.sections import ModelSpec
from rollout_sft.inputs.choose import make_adapter
from rollout_sft.model.image_processor import load_image_processor
from rollout_sft.model.loading import load_config
from tests.rollout_sft.targets.tokenizers import MAKERS

TOKENS = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ p.text }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
)
CONFIG = {
    "model_type": "qwen3_vl",
    "text_config": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 32,
    },
    "vision_config": {
        "depth": 1,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 16,
        "patch_size": 4,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [],
    },
}


def image_tokenizer():
    tokenizer = MAKERS["words"]()
    tokenizer.add_special_tokens({"additional_special_tokens": TOKENS})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def image_spec(config=CONFIG, **overrides):
    return ModelSpec(config=config, tokenizer_name_or_path="made:here", **overrides)


def image_adapter(tokenizer, **overrides):
    spec = image_spec(**overrides)
    config = load_config(spec, tokenizer)
    return make_adapter(config, tokenizer, load_image_processor(spec, config))
