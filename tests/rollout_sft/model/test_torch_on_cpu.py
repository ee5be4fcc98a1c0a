"""Packages of GPU kernels that are installed on a machine without a GPU: hybrids compute in PyTorch, and say so."""

import inspect
import re
import sys

import pytest
import torch
import yaml
from transformers.integrations import use_kernel_func_from_hub_with_fallback

from examples.digits.data import DigitsDataset
from rollout_sft import check
from rollout_sft.model.layer_kinds import recurrent_layers
from rollout_sft.model.recurrent import RecurrentLayers
from rollout_sft.model.torch_on_cpu import compute_on_cpu
from tests.hybrids import FLOAT32, HYBRIDS, TOLERANCE, float64_throughout, hybrid
from tests.rollout_sft.model.test_recurrent import CPU, alone, as_trained, gradient, packed, segments
from tests.rollout_sft.step.test_gradient import relative_difference
from tests.rollout_sft.test_train import CONFIG
from tests.standins.kernels import PACKAGES

DECORATED = re.compile(r'@use_kernel_func_from_hub_with_fallback\(\s*"(\w+)", "(\w+)"[^)]*\)\ndef (\w+)')
WITHOUT_GPU = PACKAGES.with_name("packages_without_gpu")
STANDINS = {path.name for path in WITHOUT_GPU.iterdir()}
NEEDS_GPU = "0 active drivers|is_cuda"
SLICE = ("kimi_linear", "mamba", "mamba2", "qwen3_5_text", "qwen3_next")


def modules(model):
    return {inspect.getmodule(type(layer)) for layer in recurrent_layers(model).values()}


def kernels_of(module):
    return DECORATED.findall(inspect.getsource(module))


@pytest.fixture
def install(monkeypatch):
    """Does with the stand-ins what transformers does when it is imported beside the packages."""

    def install(model):
        found = [(module, *kernel) for module in modules(model) for kernel in kernels_of(module)]
        with monkeypatch.context() as path:  # no module that is imported later sees them
            path.syspath_prepend(str(WITHOUT_GPU))
            taken = [
                (module, name, use_kernel_func_from_hub_with_fallback(function, package)(inspect.unwrap(own)))
                for module, function, package, name in found
                for own in [vars(module)[name]]
            ]
            for name in [name for name in sys.modules if name.partition(".")[0] in STANDINS]:
                del sys.modules[name]
        for module, name, function in taken:
            monkeypatch.setattr(module, name, function)

    return install


def answer(model):
    ids = torch.arange(3, 9)[None]
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False).tolist()


@pytest.mark.parametrize("family", [f if f in SLICE else pytest.param(f, marks=pytest.mark.families) for f in HYBRIDS])
def test_kernels_that_need_a_gpu_change_neither_gradient_nor_answer(family, install, caplog):
    model, parts = hybrid(family, torch.float32 if family in FLOAT32 else torch.float64), segments()
    if family not in SLICE and not any(kernels_of(module) for module in modules(model)):
        pytest.skip("no kernel stands behind its layers")
    with float64_throughout():
        expected, said = gradient(model, alone(parts)), answer(model)
        install(model)
        with pytest.raises(RuntimeError, match=NEEDS_GPU):
            gradient(model, alone(parts))
        with as_trained(model).active():
            found = gradient(model, packed(model, parts))
        assert answer(model) == said
    assert relative_difference(found, expected) < TOLERANCE.get(family, 1e-10)
    assert "need a GPU, and this run has none" in caplog.text


def test_a_model_without_installed_kernels_is_left_as_it_is(caplog):
    model = hybrid("qwen3_next", torch.float32)
    before = [dict(vars(module)) for module in modules(model)]
    assert compute_on_cpu(model) == []
    assert [dict(vars(module)) for module in modules(model)] == before
    assert not caplog.text


def test_tensors_elsewhere_get_the_kernel_and_borders_are_refused_on_a_cpu(install):
    model = hybrid("qwen3_next", torch.float32)
    install(model)
    assert "torch_chunk_gated_delta_rule" in compute_on_cpu(model)
    (module,) = modules(model)
    rule = module.torch_chunk_gated_delta_rule
    assert compute_on_cpu(model)
    assert module.torch_chunk_gated_delta_rule is rule, "replaced once"
    q, g = torch.ones(1, 3, 2, 8), torch.ones(1, 3, 2)
    with pytest.raises(RuntimeError, match=NEEDS_GPU):
        rule(*(q.to("meta") for _ in range(3)), g=g.to("meta"), beta=g.to("meta"))
    with pytest.raises(ValueError, match="cannot keep packed segments apart on a CPU"):
        rule(q, q, q, g=g, beta=g, cu_seqlens=torch.tensor([0, 1, 3]))
    assert RecurrentLayers(model, device=CPU).looped
    assert RecurrentLayers(model, device=torch.device("cuda")).by_kernel, "a GPU has its kernels"


def test_a_run_trains_and_evaluates_beside_kernels_that_need_a_gpu(install, make_trainer, tokenizer):
    model = hybrid("qwen3_5_text", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=1024)
    install(model)
    trainer = make_trainer(
        model=model, post_rollout_pack_scope="window", max_steps=1, evaluation=DigitsDataset("eval", 2, seed=1)
    )
    assert "eval_rollout/f1" in trainer.evaluate(), "before training, and outside it"
    trainer.train()
    assert trainer.state.global_step == 1


def test_a_check_on_a_machine_without_a_gpu_says_what_computes(install, tmp_path, capsys, caplog):
    install(hybrid("qwen3_5_text", torch.float32))
    text = CONFIG.replace("OUT", str(tmp_path / "out")).replace("RESUME", "null")
    shape = {"model_type": "qwen3_5_text", "hidden_size": 32, "head_dim": 16, "layer_types": ["linear_attention"]}
    shape |= dict.fromkeys(("num_hidden_layers", "num_key_value_heads", "linear_num_key_heads"), 1)
    shape |= dict.fromkeys(("num_attention_heads", "linear_num_value_heads"), 2)
    shape |= dict.fromkeys(("intermediate_size", "linear_key_head_dim", "linear_value_head_dim"), 16)
    run = yaml.safe_load(text)
    run["model"]["config"] = shape
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(run))
    check.main(["--config", str(tmp_path / "config.yaml")])
    page = " ".join(capsys.readouterr().out.split())
    assert "leak probe passed" in page
    assert "Qwen3_5ForCausalLM need a GPU, and this run has none: causal_conv1d_fn, causal_conv1d_update" in caplog.text
