"""Forwards that depend on the longest position of the row: every segment is computed as it is alone."""

import copy

import pytest
import torch

from rollout_sft.config.decoding import Decoding
from rollout_sft.inputs.segment import pack_of
from rollout_sft.model.attention import VARLEN, choose_attention
from rollout_sft.model.recurrent import RecurrentLayers
from rollout_sft.model.rotary import STATIC, frequency_borders, rotary_by_row
from rollout_sft.rollouts.base import RolloutRequest
from rollout_sft.rollouts.hf import HFBackend
from rollout_sft.step.collate import collate_padded
from tests.hybrids import float64_throughout
from tests.row_lengths import (
    BORDER,
    CPU,
    READ_BY_ROW,
    alone,
    as_trained,
    build,
    difference,
    gradient,
    packed,
    parts,
    small_config,
)
from tests.tiny_families import available

CASES = available(READ_BY_ROW)
FAMILIES = pytest.mark.parametrize(("family", "kind"), CASES.values(), ids=CASES)
ROLLOUTS = [name for name in CASES if name.startswith(("phi3", "llama"))]
ROTARY = pytest.mark.parametrize(("family", "kind"), [c for c in CASES.values() if c[1]])


def model_of(family, kind, dtype=torch.float64, **overrides):
    return build(small_config(family, kind, **overrides)[0], dtype)


@FAMILIES
def test_the_gradient_of_a_pack_is_that_of_its_segments_alone(family, kind):
    assert difference(model_of(family, kind)) < 1e-14


@FAMILIES
def test_without_the_cure_the_segments_train_something_else(family, kind):
    model = model_of(family, kind)
    expected = alone(model, parts())
    choose_attention(model, "auto", device=CPU)
    assert float((packed(model, parts()) - expected).norm() / expected.norm()) > 1e-3


@ROTARY
def test_the_rows_of_a_rectangle_are_computed_as_they_are_alone(family, kind):
    model = model_of(family, kind)
    with float64_throughout():
        expected = alone(model, parts())
    rectangle = collate_padded(pack_of(parts()), filler_id=0).forward
    own = RecurrentLayers(model, device=CPU)
    real = rectangle["attention_mask"].bool()

    def found():
        model.zero_grad()
        logits = model(**rectangle).logits[real]
        (logits.logsumexp(-1) - logits[..., 5]).sum().backward()
        return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])

    assert float((found() - expected).norm() / expected.norm()) > 1e-3, "as transformers has it"
    with own.active(), float64_throughout():
        assert float((found() - expected).norm() / expected.norm()) < 1e-13


@ROTARY
def test_what_ran_before_does_not_change_a_segment(family, kind):
    model = model_of(family, kind)
    new = copy.deepcopy(model)
    short, middle, long = parts((20, 36, 60))
    plain = {"input_ids": middle.input_ids[None], "use_cache": False}
    expected = gradient(new, [plain])
    with as_trained(model).active():
        packed(model, [short, long])
        assert torch.equal(gradient(model, [plain]), expected), "alone, behind a longer one"
        packed(model, [long])
    assert torch.equal(gradient(model, [plain]), expected), "after training"
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(("family", "kind"), [CASES[name] for name in ROLLOUTS], ids=ROLLOUTS)
def test_rollouts_are_those_of_each_row_alone(family, kind):
    """Prompts on both sides of the border, some of which cross it; in any order, and after a longer one."""
    model = model_of(family, kind, torch.float32)
    lengths = (9, 28, 33, 40, 28, 60)
    requests = [RolloutRequest(prompt_ids=s.input_ids.tolist(), seed=i) for i, s in enumerate(parts(lengths))]
    decoding = Decoding(max_new_tokens=8)

    def rollouts(requests, batch_size, model):
        backend = HFBackend(lambda: model, decoding, eos_token_ids=[2], pad_token_id=0, batch_size=batch_size)
        return backend.generate(requests)

    expected = [rollouts([request], 1, copy.deepcopy(model))[0] for request in requests]
    assert rollouts(requests, 8, model) == expected
    assert rollouts(requests[::-1], 2, model) == expected[::-1]
    assert len({tuple(r.response_ids) for r in expected}) > 4, "all answers alike would show little"


def chunks(model, lengths, max_new_tokens, batch_size=8):
    requests = [RolloutRequest(prompt_ids=[5] * n, seed=0) for n in lengths]
    decoding = Decoding(max_new_tokens=max_new_tokens)
    backend = HFBackend(lambda: model, decoding, eos_token_ids=[2], pad_token_id=0, batch_size=batch_size)
    return [[lengths[i] for i in chunk] for chunk in backend._chunks(requests)]


def test_rows_that_cannot_differ_still_share_a_chunk():
    lengths = [3, 5, 28, 28, 30, 34, 50]
    assert chunks(model_of("llama", None), lengths, 4) == [lengths], "fixed frequencies"
    assert chunks(model_of("llama", "longrope"), lengths, 4) == [[3, 5, 28, 28], [30], [34, 50]]
    assert chunks(model_of("llama", "dynamic"), lengths, 4) == [[3, 5, 28, 28], [30], [34], [50]]
    assert chunks(model_of("llama4_text", None, floor_scale=BORDER), lengths, 4) == [[3, 5], [28, 28], [30], [34], [50]]


def test_other_attentions_than_those_by_segment_are_refused_for_a_scale_by_place():
    model = model_of("llama4_text", None, layer_types=["full_attention"] * 2)
    with pytest.raises(ValueError, match=r"rollout_matching\.attention is varlen, but Llama4ForCausalLM scales"):
        choose_attention(model, "varlen", device=CPU)
    model.set_attn_implementation("flex_attention")
    for wanted in ("auto", "model"):
        with pytest.raises(ValueError, match=r"is flex_attention, but Llama4TextAttention scales queries by their"):
            choose_attention(model, wanted, device=CPU)


@pytest.mark.parametrize(
    ("family", "changes"), [("phimoe", {}), ("qwen2_moe", {"use_sliding_window": True, "max_window_layers": 2})]
)
def test_a_window_in_the_mask_alone_is_left_to_the_mask(family, changes):
    """Varlen attention never sees the mask, so it would attend beyond the window."""
    model = model_of(family, None, sliding_window=16, **changes)
    assert difference(model) < 1e-14
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="has its sliding window in the mask alone"):
        choose_attention(model, "varlen", device=CPU)
    unlimited = model_of(family, None, sliding_window=None, **({"use_sliding_window": False} if changes else {}))
    assert choose_attention(unlimited, "auto", device=CPU) == VARLEN


def test_fixed_frequencies_are_left_to_themselves():
    model = model_of("llama", None)
    assert not rotary_by_row(model)
    assert frequency_borders(model) == {}
    assert frequency_borders(model_of("phi3", "longrope")) == {"longrope": BORDER}


def test_every_type_of_frequencies_is_known():
    """A new type counts as one that looks at the row; whether it does decides where it stands."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    assert set(ROPE_INIT_FUNCTIONS) | {"default"} == STATIC | {"dynamic", "longrope"}
