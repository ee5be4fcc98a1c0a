"""Which kernel transformers would download for an attention, and the ones whose backward fails are refused."""

import pytest
import torch

from rollout_sft.config.sections import ModelSpec
from rollout_sft.model import attention_names
from rollout_sft.model.attention import choose_attention
from rollout_sft.model.attention_names import attention_advice, kernel_instead
from rollout_sft.model.loading import load_model
from rollout_sft.overview import attention_fact
from tests.tiny_families import tiny_config

HUB = "kernels-community/flash-attn2"
SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 8, "intermediate_size": 32}


@pytest.fixture
def hub(monkeypatch):
    """The package kernels is installed, flash-attn is not, and transformers takes this version of the kernel."""

    def set_to(version):
        monkeypatch.setattr(attention_names, "is_kernels_available", lambda: True)
        monkeypatch.setattr(attention_names, "get_attn_kernel_version", lambda repo: version)
        matrix = {
            number: {**row, "general_availability_check": lambda: False}
            for number, row in attention_names.FLASH_ATTENTION_COMPATIBILITY_MATRIX.items()
        }
        monkeypatch.setattr(attention_names, "FLASH_ATTENTION_COMPATIBILITY_MATRIX", matrix)

    return set_to


def spec(attention, shared):
    config = {"model_type": "qwen3", **SHAPE, "num_key_value_heads": shared}
    return ModelSpec(
        config=config,
        tokenizer_name_or_path="examples.digits.tokenizer:build_digits_tokenizer",
        attn_implementation=attention,
    )


@pytest.mark.parametrize("name", ["flash_attention_2", HUB])
def test_grouped_heads_are_refused_before_the_failing_kernel_is_downloaded(name, hub, tokenizer):
    hub(3)
    with pytest.raises(ValueError, match="downloads") as caught:
        load_model(spec(name, shared=2), tokenizer, seed=0)
    message = str(caught.value)
    assert message.startswith(f"model.attn_implementation is {name}, for which transformers downloads {HUB}, version 3")
    assert "its backward fails where 4 heads share 2 of keys and values" in message
    assert message.endswith(f"Install flash-attn, or name {HUB}@v2; or leave attn_implementation out.")


@pytest.mark.parametrize("name", ["flash_attention_2", HUB])
def test_a_model_from_python_with_grouped_heads_is_refused(name, hub, make_model):
    hub(3)
    model = make_model(num_attention_heads=4, num_key_value_heads=2)
    model.config._attn_implementation = name
    with pytest.raises(ValueError, match="its backward fails where 4 heads share 2"):
        choose_attention(model, "auto", device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "version", "shared"),
    [
        ("flash_attention_2", 3, 4),
        ("flash_attention_2", 4, 2),
        (f"{HUB}@v2", 3, 2),
        ("flash_attention_3", 3, 2),
        ("sdpa", 3, 2),
        (None, 3, 2),
    ],
)
def test_other_kernels_and_equal_heads_are_not_refused(name, version, shared, hub):
    hub(version)
    config = tiny_config("qwen3", **SHAPE, num_key_value_heads=shared)
    attention_names.reject_failing_kernel(name, config)


def test_an_installed_package_is_used_and_nothing_is_downloaded(hub, monkeypatch):
    hub(3)
    row = attention_names.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]
    monkeypatch.setitem(row, "general_availability_check", lambda: True)
    assert kernel_instead("flash_attention_2") is None
    assert attention_fact("flash_attention_2") == "flash_attention_2, the model's own"


def test_the_page_names_the_kernel_that_was_downloaded(hub):
    hub(4)
    assert attention_fact(HUB) == f"{HUB}, version 4, a kernel that transformers downloaded from its hub"
    assert attention_fact(f"{HUB}@v2") == f"{HUB}@v2, a kernel that transformers downloaded from its hub"


@pytest.mark.skipif(not attention_names._is_missing("flash_attention_2"), reason="flash-attn is installed")
def test_the_advice_names_the_kernel_instead_of_a_missing_package(hub, monkeypatch):
    hub(4)
    assert f"takes {HUB}, version 4 from its hub, which failed" in attention_advice("flash_attention_2")
    monkeypatch.setattr(attention_names, "is_kernels_available", lambda: False)
    advice = attention_advice("flash_attention_2")
    assert f"the package flash-attn is missing (with the package kernels, transformers would download {HUB}" in advice
