"""`model.quantization_config`: an adapter is trained on quantized weights, on packs as on each segment alone."""

import json
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback, set_seed

from examples.digits.data import DigitsDataset
from rollout_sft import RolloutSFTTrainer, check_isolation, train
from rollout_sft.config.run import load_run
from rollout_sft.config.sections import ModelSpec
from rollout_sft.model.quantized import is_quantized, prepare_quantized
from rollout_sft.model.weights import DIGESTS, digests
from rollout_sft.parts import load_parts
from rollout_sft.targets.loading import make_target_builder
from tests.rollout_sft.conftest import Recorder
from tests.tiny import tiny_arguments

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'packsched[quantization]'")

WIDTHS = {
    "4 bits": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "4 bits, quantized twice": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    "8 bits": {"load_in_8bit": True, "llm_int8_threshold": 0.0},
}
PEFT = "{peft_type: lora, r: 2, target_modules: all-linear, init_lora_weights: gaussian}"
CONFIG = """
global_max_length: 320
model: {model_name_or_path: BASE, quantization_config: QUANTIZED, peft: PEFT}
data: {train: {source: "examples.digits.data:load_digits", size: 24, arguments: {max_digits: 3}}}
training: {output_dir: OUT, use_cpu: true, report_to: none, max_steps: STEPS, save_steps: 1, learning_rate: 1e-2,
  per_device_train_batch_size: 2, gradient_accumulation_steps: 2, resume_from_checkpoint: true,
  lr_scheduler_type: constant}
rollout_matching: {post_rollout_pack_scope: window, decoding: {max_new_tokens: 8}}
"""


@pytest.fixture
def base(tmp_path, make_model, tokenizer):
    make_model(torch.float32, hidden_size=64, head_dim=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def quantized(base, width, *, adapter=True):
    """The model of a user who works in Python."""
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=BitsAndBytesConfig(**width), dtype=torch.float32, device_map={"": "cpu"}
    )
    if not adapter:
        return model
    set_seed(0)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights="gaussian"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def alone(model, segments):
    """The gradient of each segment in a forward of its own."""
    total = sum(float(s.weights.sum()) for s in segments)
    model.train()  # 8-bit layers on a CPU compute in float16 otherwise
    for s in segments:
        log_probs = torch.log_softmax(model(input_ids=s.input_ids[None]).logits[0].float(), dim=-1)
        (-(s.weights * log_probs[torch.arange(len(s.targets)), s.targets]).sum() / total).backward()
    return gradient(model)


class Catch(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradient = gradient(model)


def make_trainer(folder, model, tokenizer, **overrides):
    args = tiny_arguments(folder, post_rollout_pack_scope="window", **overrides)
    builder = Recorder(make_target_builder(tokenizer, args))
    trainer = RolloutSFTTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        target_builder=builder,
        train_dataset=DigitsDataset("train", 18, seed=5, max_digits=3),
        callbacks=[catch := Catch()],
    )
    return trainer, builder, catch


@pytest.mark.parametrize("width", WIDTHS)
def test_a_packed_gradient_after_rollouts_is_that_of_each_segment_alone(tmp_path, base, tokenizer, width):
    model, reference = (quantized(base, WIDTHS[width]) for _ in range(2))
    prepare_quantized(reference)
    stored = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    trainer, builder, catch = make_trainer(tmp_path, model, tokenizer)
    trainer.train()
    expected = alone(reference, builder.segments)
    assert max(len(pack) for pack in trainer.last_window) > 2
    assert float((catch.gradient - expected).norm() / expected.norm()) < 1e-5
    assert all(torch.equal(p, stored[name]) for name, p in model.named_parameters() if name in stored)
    layers = [layer for layer in model.modules() if isinstance(layer, bnb.nn.Linear4bit)]
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    assert is_quantized(model)


@pytest.mark.skipif(
    not bnb.nn.modules.has_avx512bf16(), reason="bitsandbytes rewrites weights on CPUs with AVX512-BF16 alone"
)
def test_without_the_preparation_a_probe_spoils_the_gradient_here(tmp_path, base, tokenizer):
    model, reference = (quantized(base, WIDTHS["4 bits"]) for _ in range(2))
    prepare_quantized(reference)
    trainer, builder, _ = make_trainer(tmp_path, quantized(base, WIDTHS["4 bits"]), tokenizer)
    trainer.train()
    with torch.no_grad():
        model.eval()(input_ids=builder.segments[0].input_ids[None])
    expected = alone(reference, builder.segments)
    assert float((alone(model, builder.segments) - expected).norm() / expected.norm()) > 0.5
    with pytest.raises(ValueError, match=r"was rewritten for inference by a forward without gradients"):
        make_trainer(tmp_path, model, tokenizer)


def test_check_isolation_prepares_the_model_as_well(base):
    model = quantized(base, WIDTHS["4 bits"])
    assert check_isolation(model).leak == 0
    prepare_quantized(model)
    layer = next(layer for layer in model.modules() if isinstance(layer, bnb.nn.Linear4bit))
    layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match=r"q_proj\.base_layer was rewritten for inference"):
        prepare_quantized(model)


def test_outliers_of_one_segment_would_reach_another_and_are_refused(tmp_path, base, tokenizer):
    layer = bnb.nn.Linear8bitLt(16, 8, has_fp16_weights=False, threshold=6.0).to("cpu").eval()
    set_seed(0)
    segment, quiet, loud = torch.randn(4, 16), torch.randn(4, 16), torch.randn(4, 16)
    loud[0, 3] = 50.0
    with torch.no_grad():
        beside = [layer(torch.cat([segment, other]))[:4] for other in (quiet, loud)]
    assert float((beside[0] - beside[1]).abs().max()) > 1e-3
    with pytest.raises(ValueError, match=r"has llm_int8_threshold 6: .*segments would see each other\. Set llm_"):
        make_trainer(tmp_path, quantized(base, {"load_in_8bit": True}), tokenizer)


def test_a_quantized_model_without_an_adapter_is_refused(tmp_path, base, tokenizer):
    with pytest.raises(ValueError, match="purely quantized"):
        make_trainer(tmp_path, quantized(base, WIDTHS["4 bits"], adapter=False), tokenizer)


def test_vllm_is_refused_because_it_takes_whole_weights(tmp_path, base, tokenizer):
    with pytest.raises(ValueError, match=r"rollout_backend is vllm.* weights are quantized"):
        make_trainer(tmp_path, quantized(base, WIDTHS["4 bits"]), tokenizer, rollout_backend="vllm")


def write(folder, base, out, *, steps=1, width="4 bits", name="run"):
    path = folder / f"{name}.yaml"
    text = CONFIG.replace("BASE", str(base)).replace("OUT", str(folder / out)).replace("STEPS", str(steps))
    path.write_text(text.replace("QUANTIZED", str(WIDTHS[width])).replace("PEFT", PEFT).replace("True", "true"))
    return path


def run(*args, **kwargs):
    train.main(["--config", str(write(*args, **kwargs))])
    folder, _, out = args
    return load_file(folder / out / "adapter_model.safetensors")


@pytest.mark.parametrize("width", ["4 bits, quantized twice", "8 bits"])
def test_a_run_trains_saves_resumes_and_merges(tmp_path, base, capsys, width):
    whole = run(tmp_path, base, "whole", steps=2, width=width)
    page = " ".join(capsys.readouterr().out.split())
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    count = sum(p.numel() for p in plain.parameters()) + sum(w.numel() for w in whole.values())
    assert f"LORA on Qwen3ForCausalLM, {count:,} parameters" in page
    assert max(float(weight.abs().max()) for name, weight in whole.items() if "lora_B" in name) > 1e-3
    run(tmp_path, base, "parts", width=width)
    resumed = run(tmp_path, base, "parts", steps=2, width=width)
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items()), "bit for bit"
    with pytest.raises(SystemExit):
        run(tmp_path, base, "parts", steps=3, width="4 bits")
    assert "model.config.quantization_config" in capsys.readouterr().err
    path = write(tmp_path, base, "out", name="merged")
    path.write_text(re.sub(r"model: .*", f"model: {{model_name_or_path: {tmp_path / 'whole'}}}", path.read_text()))
    (stage,) = load_run(path)
    merged = load_parts(stage).load_model()
    ids = torch.arange(9)[None]
    assert not is_quantized(merged)
    assert not torch.allclose(merged(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-3)


def test_weights_that_this_project_saved_are_quantized_as_any_others(tmp_path, base):
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    (base / DIGESTS).write_text(json.dumps(digests(plain)))
    (stage,) = load_run(write(tmp_path, base, "out"))
    assert is_quantized(load_parts(stage).load_model())


def test_yaml_loads_quantized_weights_with_an_adapter(tmp_path, base):
    (stage,) = load_run(write(tmp_path, base, "out"))
    model = load_parts(stage).load_model()
    assert is_quantized(model)
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)


ADAPTER = {"peft_type": "LORA"}
REFUSED = {
    "no adapter": (
        {"load_in_4bit": True},
        None,
        r"quantization_config .*, but model\.peft is missing.*no weight to train",
    ),
    "misspelt": (
        {"load_in_4bits": True},
        ADAPTER,
        r"quantization_config\.load_in_4bits: the nearest valid key is load_in",
    ),
    "another method": ({"quant_method": "gptq"}, ADAPTER, r"unknown key model\.quantization_config\.quant_method"),
    "no width": ({"bnb_4bit_quant_type": "nf4"}, ADAPTER, r"it takes load_in_4bit: true or load_in_8bit: true"),
    "both widths": (
        {"load_in_4bit": True, "load_in_8bit": True},
        ADAPTER,
        r"transformers refuses these values.*both",
    ),
    "a type": (
        {"load_in_4bit": True, "bnb_4bit_compute_dtype": "half32"},
        ADAPTER,
        r"transformers refuses these values",
    ),
    "outliers": ({"load_in_8bit": True}, ADAPTER, r"llm_int8_threshold is 6: .*Set llm_int8_threshold: 0\.0"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_mistakes_are_named_before_anything_is_loaded(mistake):
    quantization, peft, message = REFUSED[mistake]
    with pytest.raises(ValueError, match=message):
        ModelSpec(model_name_or_path="x", quantization_config=quantization, peft=peft)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("rollout_sft.config.quantization.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"bitsandbytes is not installed: pip install 'packsched\[quantization\]'"):
        ModelSpec(model_name_or_path="x", quantization_config={"load_in_4bit": True}, peft=ADAPTER)
