"""Weights come back in every bit, whatever names transformers saved them under, or the run ends by their names."""

import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from rollout_sft.checkpoint.manifest import FINISHED
from rollout_sft.config.sections import ModelSpec
from rollout_sft.model.adapters import load_adapted
from rollout_sft.model.loading import load_model
from rollout_sft.model.weights import DIGESTS, WeightsError, load_weights
from tests.resumed import difference, end_of, make_trainer, tiny_model, with_adapter
from tests.tiny_images import image_tokenizer

KINDS = {
    "dense": ("qwen3", tiny_model),
    "dense, bfloat16": ("qwen3", partial(tiny_model, dtype=torch.bfloat16)),
    "tied": ("llama", partial(tiny_model, tie_word_embeddings=True)),
    "qwen3_moe": ("qwen3_moe", tiny_model),
    "mixtral": ("mixtral", tiny_model),
    "qwen3_next": ("qwen3_next", tiny_model),
    "qwen2_5_vl": ("qwen2_5_vl", tiny_model),
    "internvl": ("internvl", tiny_model),
    "youtu, whose load zeroes a row": ("youtu", tiny_model),
    "LoRA": ("qwen3", with_adapter),
    "LoRA, qwen3_moe": ("qwen3_moe", with_adapter),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_bit_equal(tmp_path, kind):
    family, make_model = KINDS[kind]
    assert difference(family, tmp_path, make_model) == 0


def remove(tensors, name):
    del tensors[name]


def rename(tensors, name):
    tensors[f"{name}_other"] = tensors.pop(name)


def leave_over(tensors, name):
    tensors["model.layers.9.self_attn.q_proj.weight"] = tensors[name].clone()


def shorten(tensors, name):
    tensors[name] = tensors[name][:-1].clone()


def set_to_zero(tensors, name):
    tensors[name] = torch.zeros_like(tensors[name])


FAULTS = {
    remove: "missing from the files: 1 tensor ({name})",
    rename: "missing from the files: 1 tensor ({name}); in the files, but not in the model: 1 tensor ({name}_other)",
    leave_over: "in the files, but not in the model: 1 tensor (model.layers.9.self_attn.q_proj.weight)",
    shorten: "of another shape: 1 tensor ({name})",
    set_to_zero: "not what was saved, of 25: 1 tensor ({name})",
}
NORM = "model.layers.1.input_layernorm.weight"


def change(file, fault, name):
    """Writes a file of weights again, and takes the manifest away, which would have found this by itself."""
    tensors = load_file(file)
    fault(tensors, name)
    save_file(tensors, file, metadata={"format": "pt"})
    if (file.parent / FINISHED).exists():
        (file.parent / FINISHED).write_text("")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a finished MoE run with two checkpoints."""
    folder = tmp_path_factory.mktemp("moe")
    trainer = make_trainer("qwen3_moe", tiny_model("qwen3_moe", 0), folder)
    trainer.train()
    trainer.save_model()
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_tensor_that_does_not_come_back_ends_the_resume_by_name(copied, fault):
    change(copied / "checkpoint-2" / "model.safetensors", fault, NORM)
    trainer = make_trainer("qwen3_moe", tiny_model("qwen3_moe", 1), copied)
    with pytest.raises(WeightsError) as raised:
        trainer.train(resume_from_checkpoint=str(copied / "checkpoint-2"))
    message = str(raised.value)
    assert FAULTS[fault].format(name=NORM) in message
    assert "checkpoint-2" in message
    assert "Take another checkpoint" in message


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_next_stage_starts_from_the_whole_weights_or_not_at_all(copied, fault):
    spec = ModelSpec(model_name_or_path=str(copied))
    whole = load_model(spec, image_tokenizer(), seed=0).state_dict()
    last = load_file(copied / "model.safetensors")
    assert torch.equal(whole[NORM], last[NORM])
    change(copied / "model.safetensors", fault, NORM)
    with pytest.raises(WeightsError) as raised:
        load_model(spec, image_tokenizer(), seed=0)
    assert FAULTS[fault].format(name=NORM) in str(raised.value)


def test_a_file_that_is_cut_off_is_named(copied):
    file = copied / "checkpoint-2" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    (copied / "checkpoint-2" / FINISHED).write_text("")
    trainer = make_trainer("qwen3_moe", tiny_model("qwen3_moe", 1), copied)
    with pytest.raises(WeightsError, match=r"the weights in .*checkpoint-2 cannot be loaded"):
        trainer.train(resume_from_checkpoint=str(copied / "checkpoint-2"))


def test_a_checkpoint_of_an_earlier_version_resumes_without_digests(copied):
    """Its tensors are then compared by name and shape alone."""
    (copied / "checkpoint-2" / DIGESTS).unlink()
    (copied / "checkpoint-2" / FINISHED).write_text("")
    whole = load_model(ModelSpec(model_name_or_path=str(copied)), image_tokenizer(), seed=0).state_dict()
    trainer = make_trainer("qwen3_moe", tiny_model("qwen3_moe", 1), copied)
    trainer.train(resume_from_checkpoint=str(copied / "checkpoint-2"))
    weights, _ = end_of(trainer)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights.items())


def best_trainer(folder, model):
    """The evaluation after the second step says that its weights are the best ones."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_rollout/second", "eval_strategy": "steps"}
    trainer = make_trainer("qwen3_moe", model, folder, evaluated=True, eval_steps=2, **best)
    trainer.target_builder.score = lambda *_: {"rollout/second": (float(trainer.state.global_step == 2), 1.0)}
    return trainer


@pytest.mark.parametrize("make_model", [partial(tiny_model, "qwen3_moe"), partial(with_adapter, "qwen3_moe")])
def test_the_best_weights_come_back_at_the_end(tmp_path, make_model):
    seen = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            seen[state.global_step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    trainer = best_trainer(tmp_path, make_model(0))
    trainer.add_callback(Keep())
    trainer.train()
    weights, _ = end_of(trainer)
    assert any(not torch.equal(tensor, seen[4][name]) for name, tensor in weights.items())
    assert all(torch.equal(tensor, seen[2][name]) for name, tensor in weights.items())


@pytest.mark.parametrize("fault", [remove, set_to_zero], ids=lambda fault: fault.__name__)
def test_best_weights_that_do_not_come_back_end_the_run(tmp_path, fault):
    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                change(tmp_path / "checkpoint-2" / "model.safetensors", fault, NORM)

    trainer = best_trainer(tmp_path, tiny_model("qwen3_moe", 0))
    trainer.add_callback(Break())
    with pytest.raises(WeightsError, match=NORM):
        trainer.train()


def adapter_of_another_rank(tensors, name):
    tensors[name] = torch.cat([tensors[name]] * 2)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (remove, "not what was saved"),
        (set_to_zero, "not what was saved"),
        (adapter_of_another_rank, "cannot be loaded: RuntimeError"),
    ],
)
def test_an_adapter_that_does_not_come_back_ends_the_resume(tmp_path, fault, message):
    make_trainer("qwen3", with_adapter("qwen3", 0), tmp_path).train()
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    change(tmp_path / "checkpoint-2" / "adapter_model.safetensors", fault, name)
    trainer = make_trainer("qwen3", with_adapter("qwen3", 1), tmp_path)
    with pytest.raises(WeightsError, match=message) as raised:
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "layers.1.self_attn.q_proj.lora_A" in str(raised.value)


@pytest.mark.parametrize("peft", [{"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}, None])
def test_the_stage_after_an_adapter_starts_from_it_or_not_at_all(tmp_path, peft):
    """Trained on or merged, and on weights whose experts were saved under other names."""
    tokenizer, folder = image_tokenizer(), tmp_path / "run"
    tiny_model("qwen3_moe", 0).save_pretrained(tmp_path / "base")
    new = ModelSpec(
        model_name_or_path=str(tmp_path / "base"), peft={"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}
    )
    trainer = make_trainer(
        "qwen3_moe", load_adapted(new, load := lambda spec: load_model(spec, tokenizer, seed=0)), folder
    )
    trainer.train()
    trainer.save_model()
    after = ModelSpec(model_name_or_path=str(folder), peft=peft)
    load_adapted(after, load)
    change(
        folder / "adapter_model.safetensors",
        set_to_zero,
        "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight",
    )
    with pytest.raises(
        WeightsError, match=r"not what was saved, of 4: 1 tensor \(.*layers\.1\.self_attn\.q_proj\.lora_B"
    ):
        load_adapted(after, load)


def test_parts_of_different_dtypes_come_back_in_their_own(tmp_path):
    one, other = (tiny_model("qwen3_moe", seed, torch.bfloat16) for seed in (0, 1))
    for model in (one, other):
        model.model.norm.to(torch.float32)
    torch.nn.init.normal_(one.model.norm.weight)
    one.save_pretrained(tmp_path)
    load_weights(other, tmp_path)
    state = other.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16, torch.float32}


def test_a_model_with_further_modules_takes_weights_by_their_names(tmp_path):
    one, other = (tiny_model("qwen3", seed) for seed in (0, 1))
    for model in (one, other):
        model.further = torch.nn.Linear(2, 2)
    one.save_pretrained(tmp_path)
    load_weights(other, tmp_path)
    state = other.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())
    change(tmp_path / "model.safetensors", remove, "further.bias")
    with pytest.raises(WeightsError, match=r"further\.bias"):
        load_weights(other, tmp_path)
