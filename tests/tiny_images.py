"""Image models, tokenizer and images, small enough to train in a second; nothing is downloaded."""

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast, set_seed
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from rollout_sft.inputs.images import Image

SPECIAL = ["<pad>", "<eos>", "<image>", "<video>", "<img>", "</img>", "[IMG_BREAK]", "[IMG_END]"]
SPECIAL += ["<fake_token_around_image>", "<global-img>"]
IMAGE, VIDEO, START, END = 2, 3, 4, 5
VOCABULARY = 64
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
    "max_position_embeddings": 1024,
}
_MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
_QWEN2_TOWER = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "in_channels": 3}
_QWEN3_TOWER = {
    **_QWEN2_TOWER,
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 32,
    "num_position_embeddings": 64,
}
CONFIGS = {
    "qwen2_vl": {
        "text_config": {**TEXT, "rope_parameters": {**_MROPE, "rope_type": "default"}},
        "vision_config": {**_QWEN2_TOWER, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
    },
    "qwen2_5_vl": {
        "text_config": {**TEXT, "rope_parameters": _MROPE},
        "vision_config": {
            **_QWEN2_TOWER,
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
    },
    "qwen3_vl": {
        "text_config": {**TEXT, "rope_parameters": _MROPE},
        "vision_config": {**_QWEN3_TOWER, "deepstack_visual_indexes": [0, 1]},
    },
    "qwen3_5": {
        "text_config": {
            **TEXT,
            "rope_parameters": {**_MROPE, "partial_rotary_factor": 1.0},
            "layer_types": ["linear_attention", "full_attention"],
            **dict.fromkeys(("linear_num_value_heads", "linear_num_key_heads"), 2),
            **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
        },
        "vision_config": _QWEN3_TOWER,
    },
}
QWEN_VL = tuple(CONFIGS)
_TEXT = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
    "image_size": 16,
}
CONFIGS |= {
    "internvl": {
        "text_config": {"model_type": "qwen2", **_TEXT},
        "vision_config": {**_TOWER, "patch_size": [4, 4], "image_size": [16, 16]},
        "image_seq_length": 4,
    },
    "llava_onevision": {
        "text_config": {"model_type": "qwen2", **_TEXT},
        "vision_config": {"model_type": "siglip_vision_model", **_TOWER, "vision_use_head": False},
        "image_grid_pinpoints": [[16, 16], [16, 32], [32, 16], [32, 32]],
    },
    "smolvlm": {
        "text_config": {"model_type": "llama", **_TEXT},
        "vision_config": _TOWER,
        "scale_factor": 2,
    },
    "mistral3": {
        "text_config": {"model_type": "mistral", **_TEXT, "sliding_window": None},
        "vision_config": {"model_type": "pixtral", **_TOWER, "head_dim": 16, "image_size": 64},
        "spatial_merge_size": 2,
    },
}
PLAIN_VISION = tuple(family for family in CONFIGS if family not in QWEN_VL)


def image_tokenizer():
    words = SPECIAL + [f"t{i}" for i in range(len(SPECIAL), VOCABULARY)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", additional_special_tokens=SPECIAL[2:]
    )


def image_config(family):
    ids = {"image_token_id": IMAGE, "tie_word_embeddings": False}
    if family in QWEN_VL:
        ids |= {"video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
    if family == "llava_onevision":
        ids |= {"video_token_id": VIDEO}
    return AutoConfig.for_model(family, **CONFIGS[family], **ids)


def image_processor(family):
    side = {"size": {"height": 16, "width": 16}}
    if family == "internvl":
        return GotOcr2ImageProcessorPil(**side, max_patches=4)
    if family == "llava_onevision":
        return LlavaOnevisionImageProcessorPil(**side, image_grid_pinpoints=CONFIGS[family]["image_grid_pinpoints"])
    if family == "smolvlm":
        return SmolVLMImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    if family == "mistral3":
        return PixtralImageProcessorPil(size={"longest_edge": 40})
    return Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=8 * 64)


def image_model(family, dtype=torch.float64, **overrides):
    set_seed(0)
    return AutoModelForImageTextToText.from_config(image_config(family), dtype=dtype, **overrides)


def picture(height, width, seed=0):
    """An image of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image(source=pixels, height=height, width=width)
