"""`model.peft`: an adapter is trained on weights that stay, saved, resumed, gone on from, and merged."""

import json
import re

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rollout_sft import train
from rollout_sft.config.adapter import read_adapter
from rollout_sft.config.run import load_run
from rollout_sft.config.sections import ModelSpec
from rollout_sft.model.adapters import load_adapted
from rollout_sft.parts import load_parts

PEFT = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj", "v_proj"]}
CONFIG = """
global_max_length: 320
model: {model_name_or_path: BASE, peft: {peft_type: lora, r: 2, target_modules: [q_proj, v_proj]}}
data: {train: {source: "examples.digits.data:load_digits", size: 24, arguments: {max_digits: 3}}}
training: {output_dir: OUT, use_cpu: true, report_to: none, max_steps: STEPS, save_steps: 1, learning_rate: 1e-2,
  per_device_train_batch_size: 2, gradient_accumulation_steps: 2, resume_from_checkpoint: true,
  lr_scheduler_type: constant}
rollout_matching: {post_rollout_pack_scope: window, reference_fraction: 1.0}
"""


@pytest.fixture
def base(tmp_path, make_model, tokenizer):
    """A folder with weights, as a user would have them."""
    make_model(torch.float32).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def load(spec):
    return AutoModelForCausalLM.from_pretrained(spec.model_name_or_path, dtype=torch.float32)


def run(folder, base, out, steps):
    path = folder / f"{out}.yaml"
    path.write_text(CONFIG.replace("BASE", str(base)).replace("OUT", str(folder / out)).replace("STEPS", str(steps)))
    train.main(["--config", str(path)])
    return load_file(folder / out / "adapter_model.safetensors")


def test_a_run_trains_saves_and_resumes_the_adapter_alone(tmp_path, base, capsys):
    whole = run(tmp_path, base, "whole", 2)
    page = " ".join(capsys.readouterr().out.split())
    assert re.search(r"model LORA on Qwen3ForCausalLM, [\d,]+ parameters, 448 trained \(", page), page
    assert max(float(weights.abs().max()) for name, weights in whole.items() if "lora_B" in name) > 1e-3
    assert not (tmp_path / "whole" / "model.safetensors").exists()
    run(tmp_path, base, "parts", 1)
    resumed = run(tmp_path, base, "parts", 2)
    assert all(torch.equal(resumed[name], weights) for name, weights in whole.items()), "bit for bit"


def test_a_configuration_may_name_the_folder_of_an_adapter(tmp_path, base, tokenizer):
    saved_adapter(base, tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "next.yaml"
    path.write_text(CONFIG.replace("BASE", str(tmp_path / "adapter")).replace("OUT", "x").replace("STEPS", "1"))
    (stage,) = load_run(path)
    assert isinstance(load_parts(stage).load_model(), PeftModel)


def saved_adapter(base, folder):
    """An adapter that changes something."""
    model = load_adapted(ModelSpec(model_name_or_path=str(base), peft={**PEFT, "init_lora_weights": False}), load)
    model.save_pretrained(folder)
    return model


def test_a_folder_with_an_adapter_is_trained_on_or_merged(tmp_path, base):
    first = saved_adapter(base, tmp_path / "adapter").eval()
    spec = ModelSpec(model_name_or_path=str(tmp_path / "adapter"), peft=PEFT)
    again = load_adapted(spec, load)
    merged = load_adapted(ModelSpec(model_name_or_path=str(tmp_path / "adapter")), load)
    assert isinstance(again, PeftModel)
    assert {name for name, p in again.named_parameters() if p.requires_grad} == {
        name for name, p in first.named_parameters() if "lora_" in name
    }
    assert not isinstance(merged, PeftModel)
    assert all(p.requires_grad for p in merged.parameters())
    ids = torch.arange(9)[None]
    plain = load(ModelSpec(model_name_or_path=str(base))).eval()(input_ids=ids).logits
    for model in (again, merged):
        logits = model.eval()(input_ids=ids).logits
        assert torch.allclose(logits, first(input_ids=ids).logits, atol=1e-5)
        assert not torch.allclose(logits, plain, atol=1e-3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 4),
        ("lora_alpha", 32),
        ("lora_dropout", 0.5),
        ("target_modules", ["k_proj"]),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q_proj": 4}),
    ],
)
def test_another_field_than_that_of_the_saved_adapter_is_refused(tmp_path, base, key, value):
    saved_adapter(base, tmp_path / "adapter")
    same = {**PEFT, "target_modules": ["v_proj", "q_proj"], "init_lora_weights": True, "lora_dropout": 0.0}
    assert isinstance(load_adapted(ModelSpec(model_name_or_path=str(tmp_path / "adapter"), peft=same), load), PeftModel)
    spec = ModelSpec(model_name_or_path=str(tmp_path / "adapter"), peft={**PEFT, key: value})
    with pytest.raises(ValueError, match=rf"model\.peft\.{key} is .*, but the adapter in .* was trained with"):
        load_adapted(spec, load)


def test_an_adapter_of_another_shape_is_not_gone_on_from(tmp_path, base):
    saved_adapter(base, tmp_path / "adapter")
    spec = ModelSpec(model_name_or_path=str(tmp_path / "adapter"), peft={**PEFT, "r": 4})
    with pytest.raises(ValueError, match=r"model\.peft\.r is 4, but the adapter in .* was trained with 2; set it back"):
        load_adapted(spec, load)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="does not say which weights it belongs to"):
        load_adapted(ModelSpec(model_name_or_path=str(tmp_path / "adapter"), peft=PEFT), load)


REFUSED = {
    "type": ({"peft_type": "LORRA"}, r"model\.peft\.peft_type is 'LORRA'; it takes ADALORA, .*LORA"),
    "no type": ({"r": 4}, r"model\.peft\.peft_type is ''; it takes "),
    "field": (
        {"peft_type": "LORA", "rank": 4},
        r"unknown key model\.peft\.rank: the nearest valid key is r \(",
    ),
    "value": (
        {"peft_type": "LORA", "r": 4, "layers_to_transform": 1, "target_modules": "x"},
        r"model\.peft: peft refus",
    ),
    "virtual tokens": ({"peft_type": "prefix_tuning"}, r"is prefix_tuning, which is refused: its virtual tokens stand"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_are_named_by_their_key(name):
    values, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        read_adapter(values)


def test_an_adapter_on_random_weights_is_refused():
    with pytest.raises(ValueError, match=r"model\.config gives random ones\. Set model\.model_name_or_path"):
        ModelSpec(config={"model_type": "qwen3"}, tokenizer_name_or_path="a:b", peft=PEFT)


def test_modules_that_the_model_lacks_are_named(base):
    with pytest.raises(ValueError, match=r"model\.peft does not fit Qwen3ForCausalLM: .*no_such_module"):
        load_adapted(ModelSpec(model_name_or_path=str(base), peft={**PEFT, "target_modules": ["no_such_module"]}), load)


@pytest.mark.parametrize("value", [{"bias": "some"}, {"lora_alpha": "x"}])
def test_values_with_which_peft_fails_are_named_by_their_key(base, value):
    with pytest.raises(ValueError, match=r"^model\.peft does not fit Qwen3ForCausalLM: "):
        load_adapted(ModelSpec(model_name_or_path=str(base), peft={**PEFT, **value}), load)


def test_without_peft_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(
        ImportError, match=r"model\.peft is given, but peft is not installed: pip install 'packsched\[pe"
    ):
        read_adapter(PEFT)
