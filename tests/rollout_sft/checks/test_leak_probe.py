"""The leak probe catches every planted leak and passes the isolated models."""

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM

from rollout_sft.checks.leak_probe import LEAK, LeakError, check_isolation
from rollout_sft.inputs.segment import Segment, pack_of
from rollout_sft.step.collate import forward_inputs
from rollout_sft.step.non_finite import NonFiniteError

FALCON_LEAKS = Version(transformers.__version__) < Version("5.24")
"""Later versions hand its masks the positions, which restart."""
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}


def model_of(model_type, dtype=torch.float32, attention=None, **overrides):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SHAPE, "initializer_range": 0.2, **overrides})
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)


def contract(segments):
    """The batch contract as the trainer builds it."""
    return forward_inputs(pack_of([Segment.from_lists(ids, ids, [0.0] * len(ids)) for ids in segments]))


def planted(change):
    def build(segments):
        batch = contract(segments)
        change(batch)
        return batch

    return build


def all_ones_mask(batch):
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])


def use_cache(batch):
    batch["use_cache"] = True


def no_position_ids(batch):
    del batch["position_ids"]


def positions_that_do_not_restart(batch):
    batch["position_ids"] = torch.arange(batch["input_ids"].numel())[None]


def one_border_forgotten(batch):
    positions = batch["position_ids"].clone()
    start = int((positions[0] == 0).nonzero()[2])
    positions[0, start:] += start // 2
    batch["position_ids"] = positions


@pytest.mark.parametrize(
    "leak", [all_ones_mask, use_cache, no_position_ids, positions_that_do_not_restart, one_border_forgotten]
)
def test_a_planted_leak_is_caught(leak):
    model = model_of("qwen3", head_dim=16)
    assert check_isolation(model, build_batch=contract).leak == 0, "the same model without the plant is isolated"
    with pytest.raises(LeakError) as caught:
        check_isolation(model, build_batch=planted(leak))
    message = str(caught.value)
    assert "Qwen3ForCausalLM with attention 'sdpa', torch.float32" in message
    assert "training.packing: false" in message


@pytest.mark.parametrize("model_type", ["opt", *(["falcon"] if FALCON_LEAKS else []), "bloom", "mpt"])
def test_a_model_class_that_always_leaks_is_caught(model_type):
    shape = {
        "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
        "falcon": {"multi_query": False, "alibi": False},
        "bloom": {"n_layer": 2, "n_head": 2},
        "mpt": {"d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 128},
    }[model_type]
    model = model_of(model_type, **shape)
    with pytest.raises(LeakError, match=type(model).__name__):
        check_isolation(model)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "qwen2", "mistral", "gemma"])
def test_isolated_models_pass_in_every_precision(model_type, dtype, attention):
    model = model_of(model_type, dtype, attention, **({"head_dim": 16} if model_type in ("qwen3", "gemma") else {}))
    report = check_isolation(model)
    assert report.leak <= LEAK
    assert report.response > 1e-2


def test_a_mixture_of_experts_passes():
    model = model_of("qwen3_moe", head_dim=16, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2)
    assert check_isolation(model).leak <= LEAK


def test_a_probe_that_sees_nothing_says_so():
    model = model_of("llama")
    torch.nn.init.zeros_(model.lm_head.weight)
    with pytest.raises(LeakError, match="blind"):
        check_isolation(model)


def test_logits_that_are_not_numbers_do_not_pass():
    model = model_of("llama")
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(NonFiniteError, match=r"^NaN weights at the start: lm_head\.weight of LlamaForCausalLM"):
        check_isolation(model)


def test_logits_that_overflow_are_called_that():
    model = model_of("llama")
    torch.nn.init.constant_(model.model.norm.weight, 1e38)
    with pytest.raises(NonFiniteError, match=r"gives logits that are not finite in torch\.float32, though all of its"):
        check_isolation(model)


def test_the_model_is_left_as_it_was():
    model = model_of("llama").train()
    model.model.layers[0].eval()
    modes = [m.training for m in model.modules()]
    before = torch.get_rng_state()
    check_isolation(model)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(before, torch.get_rng_state())


def test_training_on_packs_does_not_start_with_a_leaking_model(make_trainer, tokenizer):
    model = model_of("opt", vocab_size=len(tokenizer), ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=900)
    trainer = make_trainer(model=model, post_rollout_pack_scope="window", attention="model")
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(LeakError):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not trainer.recorder.segments, "refused before the first rollout"


def test_without_packing_a_leaking_model_may_train(make_trainer, tokenizer):
    model = model_of("opt", vocab_size=len(tokenizer), ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=900)
    trainer = make_trainer(model=model, packing=False)
    trainer.train()
    assert trainer.state.global_step == 1
