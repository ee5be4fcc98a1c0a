"""Recurrent layers of packed segments: each segment as if it were alone, in this model and until training ends."""

import copy
import inspect
import logging
from contextlib import nullcontext

import pytest
import torch
from transformers import CONFIG_MAPPING

from rollout_sft.checks.leak_probe import LeakError, check_isolation
from rollout_sft.config.decoding import Decoding
from rollout_sft.inputs.segment import Segment, pack_of
from rollout_sft.model.attention import choose_attention
from rollout_sft.model.forward import prepare_forward
from rollout_sft.model.layer_kinds import recurrent_layers
from rollout_sft.model.recurrent import RecurrentLayers
from rollout_sft.model.shared_calls import calls
from rollout_sft.rollouts.base import RolloutRequest
from rollout_sft.rollouts.hf import HFBackend
from rollout_sft.step.collate import forward_inputs
from tests.hybrids import FLOAT32, HYBRIDS, TOLERANCE, float64_throughout, hybrid
from tests.rollout_sft.step.test_gradient import one_by_one, relative_difference, trained
from tests.rollout_sft.step.test_image_gradients import differences
from tests.row_lengths import parts
from tests.tiny_images import CONFIGS

CPU = torch.device("cpu")
LOG = "rollout_sft.model.recurrent"
LENGTHS = (7, 1, 12, 3, 2, 80, 12)
"""Some are shorter than the convolutions, whose kernels have three or four tokens."""
SLICE = ("bamba", "lfm2", "mamba2", "minimax", "qwen3_5_text", "rwkv", "zaya")
INKLING = {"log_scaling_n_floor": 4}
"""Scales its queries by their place in the row, behind the first four tokens."""
BY_ROW = {
    "bloom": ("bloom", {}),
    "falcon": ("falcon", {}),
    "falcon with ALiBi": ("falcon", {"alibi": True}),
    "mpt": ("mpt", {}),
    "gpt_oss": ("gpt_oss", {}),
    "biogpt": ("biogpt", {}),
    "inkling": ("inkling_text", INKLING),
    "inkling2": ("inkling2_text", INKLING),
}
BY_ROW = {name: case for name, case in BY_ROW.items() if case[0] in CONFIG_MAPPING}
FAMILIES = pytest.mark.parametrize(
    "family", [*SLICE, *(pytest.param(f, marks=pytest.mark.families) for f in HYBRIDS if f not in SLICE)]
)


def segments(lengths=LENGTHS):
    return parts(lengths)


def gradient(model, forwards):
    """Of a sum over all logits that no symmetry makes zero."""
    model.zero_grad()
    for inputs in forwards:
        logits = model(**inputs).logits
        (logits.logsumexp(-1) - logits[..., 5]).sum().backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])


def alone(parts):
    return [{"input_ids": s.input_ids[None], "use_cache": False} for s in parts]


def packed(model, parts):
    return [prepare_forward(model, forward_inputs(pack_of(parts)))]


def as_trained(model):
    """The attention and the recurrent layers as the trainer chooses them."""
    choose_attention(model, "auto", device=CPU)
    return RecurrentLayers(model, device=CPU)


def window_difference(family, scope, make_trainer, tokenizer, caplog):
    """Trains a window of rollouts; returns how far its gradient is from that of its segments alone."""
    single = family in FLOAT32
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 1024}
    model = hybrid(family, torch.float32 if single else torch.float64, **size)
    reference = copy.deepcopy(model)
    reference.config.use_cache = False  # rwkv changes its state in place
    with (
        caplog.at_level(logging.INFO, "rollout_sft.model.recurrent"),
        nullcontext() if single else float64_throughout(),
    ):
        trainer = make_trainer(model=model, post_rollout_pack_scope=scope, gradient_checkpointing=scope == "micro")
        trainer.train()
        assert max(len(lens) for lens in trainer.last_window) > 1
        _, expected = one_by_one(reference, trained(trainer))
    assert "run segment by segment, since no installed kernel" in caplog.text
    assert not any("forward" in vars(layer) for layer in recurrent_layers(model).values()), "undone after training"
    return relative_difference(trainer.catcher.gradients[0], expected)


@FAMILIES
def test_a_packed_gradient_is_that_of_each_segment_alone(family):
    model, parts = hybrid(family, torch.float32 if family in FLOAT32 else torch.float64), segments()
    with float64_throughout():
        expected = gradient(model, alone(parts))
        with as_trained(model).active():
            found = gradient(model, packed(model, parts))
    assert relative_difference(found, expected) < TOLERANCE.get(family, 1e-10)


@pytest.mark.parametrize(("family", "shape"), BY_ROW.values(), ids=BY_ROW)
def test_attention_that_counts_along_the_row_gets_each_segment_alone(family, shape, caplog):
    single = family in FLOAT32
    model, parts = hybrid(family, torch.float32 if single else torch.float64, **shape), segments()
    with float64_throughout():
        expected = gradient(model, alone(parts))
        with caplog.at_level(logging.INFO, logger="rollout_sft.model.recurrent"), as_trained(model).active():
            found = gradient(model, packed(model, parts))
            assert check_isolation(model).leak < (2e-6 if single else 1e-12)
    assert "run segment by segment, since the model makes no mask for packs" in caplog.text
    assert relative_difference(found, expected) < TOLERANCE.get(family, 1e-10)


@pytest.mark.skipif("inkling2_text" not in CONFIG_MAPPING, reason="transformers has it from 5.23 on")
def test_both_kinds_of_attention_of_inkling_2_get_each_segment_alone():
    """Either gives the right gradient as it is, but computes its bias for the square of the pack."""
    model = hybrid("inkling2_text", torch.float32)
    found = {type(model.get_submodule(name)).__name__ for name in RecurrentLayers(model, device=CPU).attention}
    assert found == {"Inkling2FullAttention", "Inkling2SlidingAttention"}


def test_flash_attention_which_knows_the_borders_is_left_to_itself():
    model = hybrid("gpt_oss")
    assert RecurrentLayers(model, device=CPU).attention
    model.config._attn_implementation = "flash_attention_3"
    assert not RecurrentLayers(model, device=CPU).attention


@FAMILIES
def test_padding_on_the_left_does_not_change_what_a_hybrid_generates(family):
    model = hybrid(family, torch.float32)
    requests = [RolloutRequest(prompt_ids=s.input_ids.tolist(), seed=i) for i, s in enumerate(segments((9, 2, 9, 1)))]
    made = [
        HFBackend(
            lambda: model, Decoding(max_new_tokens=5), eos_token_ids=[2], pad_token_id=0, batch_size=size
        ).generate(requests)
        for size in (4, 1)
    ]
    assert made[0] == made[1]
    assert len({tuple(r.response_ids) for r in made[0]}) > 2, "all answers alike would show little"


@FAMILIES
def test_the_leak_probe_finds_no_leak(family):
    model = hybrid(family, torch.float32)
    with as_trained(model).active():
        assert check_isolation(model).leak <= 2e-6


@pytest.mark.parametrize(
    ("family", "crossing"), [("lfm2", "convolution"), ("minimax", "state"), ("mamba2", "both"), ("rwkv", "shift")]
)
def test_the_leak_probe_catches_what_crosses_a_border(family, crossing):
    model = hybrid(family, torch.float32)
    with as_trained(model).active():
        layer = next(iter(recurrent_layers(model).values()))
        borders = layer._segments.borders

        def forgetful(module, args, kwargs):
            if "cu_seq_lens_q" in kwargs:  # not in the plain forward
                borders.set(kwargs["cu_seq_lens_q"][[0, 1, 3]])
                borders.calls(masked=False, spread=layer._segments.spread)
                borders.given = kwargs["cu_seq_lens_q"]

        hook = model.register_forward_pre_hook(forgetful, with_kwargs=True)
        with pytest.raises(LeakError, match="see each other"):
            check_isolation(model)
        hook.remove()
        assert check_isolation(model).leak <= 1e-6


@pytest.mark.parametrize("scope", ["micro", "window", "global"])
def test_the_gradient_of_a_window_is_that_of_its_segments(make_trainer, tokenizer, scope, caplog):
    assert window_difference("qwen3_5_text", scope, make_trainer, tokenizer, caplog) < 1e-10


def test_the_probe_before_training_runs_a_hybrid_as_training_does(make_trainer, tokenizer):
    model = hybrid("qwen3_5_text", torch.float32, vocab_size=len(tokenizer), max_position_embeddings=1024)
    trainer = make_trainer(model=model)
    assert trainer.probe().leak == 0
    assert trainer.recurrent.summary.startswith("1 Qwen3_5GatedDeltaNet run segment by segment, since no installed")
    assert not any("forward" in vars(layer) for layer in recurrent_layers(model).values()), "undone after the probe"


def test_adapters_inside_recurrent_layers_get_the_same_gradient():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(hybrid("bamba"), LoraConfig(r=4, target_modules=["in_proj", "out_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zeros, under which the other half gets no gradient
            torch.nn.init.normal_(parameter)
    parts = segments()
    with float64_throughout():
        expected = gradient(model, alone(parts))
        with as_trained(model).active():
            found = gradient(model, packed(model, parts))
    assert len(expected) < sum(p.numel() for p in model.parameters()), "the adapters alone are trained"
    assert relative_difference(found, expected) < 1e-10


@pytest.mark.families
def test_a_compiled_model_gets_the_same_gradient():
    model, parts = hybrid("lfm2"), segments()
    expected = gradient(model, alone(parts))
    compiled = torch.compile(model, backend="eager")
    with as_trained(model).active():
        for _ in range(2):
            assert relative_difference(gradient(compiled, packed(model, parts)), expected) < 1e-10
            parts = parts[::-1]


def test_the_layers_are_their_own_again_after_an_error():
    model = hybrid("lfm2")
    layer = next(iter(recurrent_layers(model).values()))
    with pytest.raises(IndexError), as_trained(model).active():
        model(**{**packed(model, segments())[0], "input_ids": torch.tensor([[10**6]])})
    assert not {"forward", "_segments"} & set(vars(layer))
    assert not model._forward_pre_hooks


def test_a_copy_of_the_model_runs_its_own_layers():
    model, parts = hybrid("lfm2"), segments()
    with as_trained(model).active():
        other = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.data.zero_()
        assert gradient(other, packed(other, parts)).abs().max() > 0


def test_forwards_that_are_not_packed_run_as_always():
    model, parts = hybrid("qwen3_5_text"), segments()
    ids = parts[0].input_ids[None]
    expected = model(input_ids=ids).logits, model.generate(ids, max_new_tokens=4, do_sample=False)
    with as_trained(model).active():
        model(**packed(model, parts)[0])
        found = model(input_ids=ids).logits, model.generate(ids, max_new_tokens=4, do_sample=False)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_dummy_of_an_idle_micro_step_gives_zero_gradients():
    model = hybrid("qwen3_5_text")
    dummy = [Segment.from_lists([3], [3], [0.0])]
    with as_trained(model).active():
        (model(**packed(model, dummy)[0]).logits * 0).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_a_row_of_another_forward_is_refused_not_leaked():
    model, parts = hybrid("mamba"), segments()
    model.gradient_checkpointing_enable()
    model.train()
    with as_trained(model).active():
        loss = model(**packed(model, parts)[0]).logits.sum()
        model(**packed(model, parts[:3])[0])
        with pytest.raises(ValueError, match="Run the backward of a pack before the next forward"):
            loss.backward()


def installed(monkeypatch, seen):
    """
    Puts stand-ins for causal-conv1d and flash-linear-attention, which need CUDA, where transformers keeps them.

    They compute what the fallbacks compute, segment by segment by the borders that they get.
    """
    from transformers.models.qwen3_5 import modeling_qwen3_5

    convolution = inspect.unwrap(modeling_qwen3_5.causal_conv1d_fn)
    rule = inspect.unwrap(modeling_qwen3_5.torch_chunk_gated_delta_rule)

    def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, activation=None, **kwargs):
        if seq_idx is None:  # a plain forward
            return convolution(x, weight, bias, activation=activation)
        assert seq_idx.dtype == torch.int32, "causal-conv1d takes no other"
        seen.append("seq_idx")
        parts = x.split(seq_idx[0].unique_consecutive(return_counts=True)[1].tolist(), dim=-1)
        return torch.cat([convolution(part, weight, bias, activation=activation) for part in parts], dim=-1)

    def chunk_gated_delta_rule(q, k, v, *, g, beta, cu_seqlens=None, **kwargs):
        kwargs = {n: value for n, value in kwargs.items() if n in inspect.signature(rule).parameters}
        if cu_seqlens is None:  # a plain forward
            return rule(q, k, v, g=g, beta=beta, **kwargs)
        seen.append("cu_seqlens")
        parts = zip(*(x.split(cu_seqlens.diff().tolist(), dim=1) for x in (q, k, v, g, beta)), strict=True)
        return torch.cat([rule(*part[:3], g=part[3], beta=part[4], **kwargs)[0] for part in parts], dim=1), None

    monkeypatch.setattr(modeling_qwen3_5, "causal_conv1d_fn", causal_conv1d_fn)
    monkeypatch.setattr(modeling_qwen3_5, "torch_chunk_gated_delta_rule", chunk_gated_delta_rule)


def test_installed_kernels_get_the_borders_and_the_loop_is_left_out(monkeypatch, caplog):
    model, parts, seen = hybrid("qwen3_5_text"), segments(), []
    cuda = torch.device("cuda")  # decides by the device's name; nothing here runs on it
    with float64_throughout():
        expected = gradient(model, alone(parts))
        assert RecurrentLayers(model, device=cuda).looped, "without the kernels"
        installed(monkeypatch, seen)
        assert RecurrentLayers(model, device=CPU).looped, "the kernels do not run on a CPU"
        with caplog.at_level(logging.INFO, logger="rollout_sft.model.recurrent"):
            layers = RecurrentLayers(model, device=cuda)
        assert (layers.looped, len(layers.by_kernel)) == ({}, 1)
        assert "1 Qwen3_5GatedDeltaNet run by their own kernels, which get cu_seq_lens and seq_idx" in caplog.text
        with layers.active():
            assert check_isolation(model).leak == 0
            seen.clear()
            found = gradient(model, packed(model, parts))
    assert seen == ["seq_idx", "cu_seqlens"], "each kernel ran once, for the whole pack"
    assert relative_difference(found, expected) < 1e-10


def test_segments_of_similar_length_share_a_call():
    assert calls([7, 300, 1, 290, 64, 200, 7]) == [[1, 3], [5], [4, 0, 6, 2]]
    assert calls([7, 300, 3, 296, 2, 295], spread=4) == [[1, 3], [5], [0, 2], [4]]


def test_chunks_are_short_while_segments_are_alone(monkeypatch):
    from transformers.models.mamba2 import modeling_mamba2

    model, parts, seen, scan = hybrid("mamba2"), segments(), [], modeling_mamba2.mamba2_chunk_scan

    def recorded(*args, **kwargs):
        seen.append(kwargs["chunk_size"])
        return scan(*args, **kwargs)

    monkeypatch.setattr(modeling_mamba2, "mamba2_chunk_scan", recorded)
    with as_trained(model).active():
        model(**packed(model, parts)[0])
        model(**alone(parts)[0])
    layers = len(recurrent_layers(model))
    assert seen == [64, 64] * layers + [256] * layers, "two calls a layer in a pack; a plain forward runs as always"


@pytest.mark.parametrize(("family", "rows"), [("mamba2", [1, 6]), ("mamba", [1, 2, 2, 2])])
def test_scans_token_by_token_get_hardly_any_padding(family, rows):
    """LENGTHS in shared calls: 80 alone, then 12 to 1 together, or 12 and 12, 7 and 3, 2 and 1."""
    model, seen = hybrid(family), []
    layer = next(iter(recurrent_layers(model).values()))
    layer.in_proj.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    with as_trained(model).active():
        model(**packed(model, segments())[0])
    assert seen == rows


def test_a_hybrid_with_images_has_the_gradient_of_its_segments_alone(monkeypatch, tmp_path):
    sizes = {f"linear_{name}": 2 for name in ("num_key_heads", "num_value_heads")}
    sizes |= {f"linear_{name}": 8 for name in ("key_head_dim", "value_head_dim")}
    plain = CONFIGS["qwen3_5"]
    text = {**plain["text_config"], **sizes, "layer_types": ["linear_attention", "full_attention"]}
    monkeypatch.setitem(CONFIGS, "qwen3_5", {**plain, "text_config": text})
    with float64_throughout():
        trainer, whole, tower = differences("qwen3_5", tmp_path, "window, dense")
    assert len(recurrent_layers(trainer.model)) == 1
    assert max(len(lens) for lens in trainer.last_window) > 1
    assert max(whole, tower) < 1e-10
