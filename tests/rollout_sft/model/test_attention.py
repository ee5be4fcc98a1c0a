"""Varlen attention: each packed segment as if it were alone, and everything else as sdpa has it."""

import copy
import logging

import pytest
import torch
import transformers
from packaging.version import Version

from rollout_sft.checks.leak_probe import LeakError, check_isolation
from rollout_sft.config.decoding import Decoding
from rollout_sft.inputs.segment import Segment, pack_of
from rollout_sft.model.attention import (
    VARLEN,
    _fused,
    choose_attention,
    mark_packed,
    reject_chunks_of_row,
    varlen_attention,
)
from rollout_sft.rollouts.base import RolloutRequest
from rollout_sft.rollouts.hf import HFBackend
from rollout_sft.step.collate import forward_inputs
from tests.peak_memory import peak_bytes
from tests.rollout_sft.checks.test_leak_probe import model_of
from tests.rollout_sft.step.test_gradient import one_by_one, relative_difference, trained

CPU = torch.device("cpu")
LENGTHS = (5, 1, 12, 3)
MODELS = {
    "plain": ("qwen3", {"head_dim": 16}),
    "grouped heads": ("qwen3", {"head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2}),
    "llama": ("llama", {}),
    "opt, which leaks with the mask of sdpa": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "sliding window": ("mistral", {"sliding_window": 4}),
    "sliding and full layers": (
        "qwen3",
        {
            "head_dim": 16,
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}


def segments(lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(64, (n,), generator=generator).tolist() for n in lengths]
    return [Segment.from_lists(ids, ids, [0.0] * len(ids)) for ids in drawn]


@pytest.mark.parametrize("name", MODELS)
def test_packed_logits_are_those_of_each_segment_alone(name):
    model_type, shape = MODELS[name]
    model = model_of(model_type, torch.float64, **shape).eval()
    reference = copy.deepcopy(model)
    assert choose_attention(model, "varlen", device=CPU) == VARLEN
    parts = segments()
    packed = model(**mark_packed(forward_inputs(pack_of(parts)), model)).logits[0].split(LENGTHS)
    for segment, logits in zip(parts, packed, strict=True):
        alone = reference(input_ids=segment.input_ids[None]).logits[0]
        assert (logits - alone).abs().max().item() < 1e-12


def test_the_sliding_window_matters_to_the_test_above():
    model_type, shape = MODELS["sliding window"]
    ids = segments()[2].input_ids[None]
    narrow, wide = model_of(model_type, torch.float64, **shape), model_of(model_type, torch.float64, sliding_window=40)
    assert (narrow(input_ids=ids).logits - wide(input_ids=ids).logits).abs().max().item() > 1e-3


@pytest.mark.parametrize("scope", ["micro", "window"])
def test_the_gradient_of_a_window_is_that_of_its_segments_one_by_one(make_trainer, make_model, scope):
    model = make_model()
    reference = copy.deepcopy(model)
    trainer = make_trainer(model=model, attention="varlen", post_rollout_pack_scope=scope)
    trainer.train()
    assert model.config._attn_implementation == VARLEN
    assert max(len(lens) for lens in trainer.last_window) > 1
    _, gradient = one_by_one(reference, trained(trainer))
    assert relative_difference(trainer.catcher.gradients[0], gradient) < 1e-10


def test_no_mask_of_the_pack_is_built():
    parts = segments((512,) * 8)
    tokens = sum(s.encoded_len for s in parts)
    model = model_of("qwen3", head_dim=16, max_position_embeddings=1024)
    head = torch.zeros(1, dtype=torch.int64)

    def forward():
        with torch.no_grad():
            model(**mark_packed(forward_inputs(pack_of(parts)), model), logits_to_keep=head)

    dense = peak_bytes(forward)
    choose_attention(model, "varlen", device=CPU)
    assert peak_bytes(forward) < tokens**2 < dense, "a boolean mask takes tokens x tokens bytes"


def test_without_the_mark_everything_is_as_with_sdpa():
    model = model_of("qwen3", torch.float64, head_dim=16).eval()
    other = copy.deepcopy(model)
    choose_attention(model, "varlen", device=CPU)
    ids = torch.stack([segments((9,), seed)[0].input_ids for seed in (1, 2)])
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    padded = {"input_ids": ids, "attention_mask": mask}
    assert torch.equal(model(**padded).logits, other(**padded).logits)
    packed = forward_inputs(pack_of(segments()))
    assert torch.equal(model(**packed).logits, other(**packed).logits), "packed, by the dense mask of sdpa"


def test_generation_of_unequal_prompts_is_as_with_sdpa():
    model = model_of("qwen3", head_dim=16)
    other = copy.deepcopy(model)
    choose_attention(model, "varlen", device=CPU)
    requests = [RolloutRequest(prompt_ids=s.input_ids.tolist(), seed=i) for i, s in enumerate(segments())]
    decoding = Decoding(max_new_tokens=8)
    made = [
        HFBackend(lambda m=m: m, decoding, eos_token_ids=[0], pad_token_id=0, batch_size=4).generate(requests)
        for m in (model, other)
    ]
    assert made[0] == made[1]
    assert len({tuple(r.response_ids) for r in made[0]}) == len(LENGTHS), "all answers alike would show little"


def first_border_forgotten(batch):
    batch["cu_seq_lens_q"] = batch["cu_seq_lens_q"][[0, 2, 3]]


def last_border_forgotten(batch):
    batch["cu_seq_lens_q"] = batch["cu_seq_lens_q"][[0, 1, 3]]


def shifted_border(batch):
    batch["cu_seq_lens_q"] = batch["cu_seq_lens_q"] + torch.tensor([0, 3, 0, 0], dtype=torch.int32)


@pytest.mark.parametrize("leak", [first_border_forgotten, last_border_forgotten, shifted_border])
def test_the_leak_probe_sees_wrong_borders(leak):
    model = model_of("qwen3", head_dim=16)
    choose_attention(model, "varlen", device=CPU)
    assert check_isolation(model).leak == 0

    def build(token_lists):
        batch = forward_inputs(pack_of([Segment.from_lists(ids, ids, [0.0] * len(ids)) for ids in token_lists]))
        leak(batch)
        return mark_packed(batch, model)

    with pytest.raises(LeakError, match=f"attention '{VARLEN}'"):
        check_isolation(model, build_batch=build)


def test_a_marked_forward_without_borders_is_refused_not_leaked():
    model = model_of("qwen3", head_dim=16)
    choose_attention(model, "varlen", device=CPU)
    batch = mark_packed(forward_inputs(pack_of(segments())), model)
    del batch["cu_seq_lens_q"]
    with pytest.raises(ValueError, match="was not handed cu_seq_lens"):
        model(**batch)


def test_what_cannot_run_varlen_is_refused_or_left_alone(caplog):
    chunked = model_of("llama4_text", layer_types=["chunked_attention", "full_attention"], head_dim=16)
    reason = r"layers that are not plain attention \(chunked_attention\)\. Set it to auto or model"
    with pytest.raises(ValueError, match=reason):
        choose_attention(chunked, "varlen", device=CPU)
    with caplog.at_level(logging.INFO, logger="rollout_sft.model.attention"):
        assert choose_attention(chunked, "auto", device=CPU) == "sdpa"
    assert "since Llama4ForCausalLM has layers" in caplog.text
    with pytest.raises(ValueError, match="does not hand cu_seq_lens"):
        choose_attention(model_of("bloom"), "varlen", device=CPU)
    with pytest.raises(ValueError, match="its attention does not get cu_seq_lens from its model"):
        choose_attention(model_of("nemotron", head_dim=16), "varlen", device=CPU)
    capped = model_of("gemma2", head_dim=16, attn_logit_softcapping=50.0, query_pre_attn_scalar=16)
    with pytest.raises(ValueError, match="caps its attention logits"):
        choose_attention(capped, "varlen", device=CPU)
    for model, device, reason in [
        (model_of("qwen3", head_dim=16), "cuda", "bfloat16 or float16, not in torch.float32"),
        (model_of("qwen3", torch.bfloat16, head_dim=20), "cuda", "head_dim is 20"),
        (model_of("qwen3", torch.bfloat16, head_dim=16, attention_dropout=0.1), "cuda", "attention_dropout is 0.1"),
    ]:
        with pytest.raises(ValueError, match=reason):
            choose_attention(model, "varlen", device=torch.device(device))


@pytest.mark.parametrize(("installed", "refused"), [("5.20.0", True), ("5.22.1", True), ("5.23.0", False)])
def test_chunks_counted_from_the_start_of_a_pack_are_refused(make_trainer, tokenizer, monkeypatch, installed, refused):
    monkeypatch.setattr(transformers, "__version__", installed)
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 1024, "head_dim": 16}
    for layer_types in (["chunked_attention", "full_attention"], ["full_attention"] * 2):
        model = model_of("llama4_text", **size, layer_types=layer_types, attention_chunk_size=16)
        reject_chunks_of_row(model, 16)  # a pack inside the first chunk
        if refused and "chunked_attention" in layer_types:
            with pytest.raises(
                ValueError, match=rf"in chunks of 16 tokens, which transformers {installed} counts from"
            ):
                make_trainer(model=model)
            make_trainer(model=model, packing=False)
        else:
            make_trainer(model=model)


def test_the_users_own_choice_stays():
    model = model_of("qwen3", head_dim=16)
    assert choose_attention(model, "model", device=CPU) == "sdpa"
    assert model.config._attn_implementation == "sdpa"


def test_the_choice_is_not_saved_with_the_model(tmp_path):
    model = model_of("qwen3", head_dim=16)
    choose_attention(model, "varlen", device=CPU)
    model.save_pretrained(tmp_path)
    assert VARLEN not in (tmp_path / "config.json").read_text()


def heads(tokens, device="cpu", dtype=torch.float32):
    """Queries in 4 heads, keys and values in 2."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(1, n, tokens, 16, generator=generator).to(device, dtype) for n in (4, 2, 2)]
    return [x.requires_grad_() for x in made]


HAS_KERNEL = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.11"), reason="varlen attention has no window_size; the model's own runs"
)


@HAS_KERNEL
def test_the_call_of_the_cuda_kernel_is_one_that_this_torch_takes():
    """On the meta device the operator itself runs, autograd included, without its arithmetic."""
    query, key, value = heads(20, "meta", torch.bfloat16)
    borders = torch.empty(4, dtype=torch.int32, device="meta")
    for window in (None, 4):
        output = _fused(query, key, value, borders, 9, 0.25, window)
        assert (output.shape, output.dtype) == ((1, 20, 4, 16), torch.bfloat16)
        output.sum().backward()
        assert key.grad.shape == key.shape


@HAS_KERNEL
@pytest.mark.parametrize("window", [None, 4, 50])
def test_the_call_of_the_cuda_kernel_means_what_the_loop_on_the_cpu_does(monkeypatch, window):
    """The kernel's arithmetic is replaced by its documentation: (left, right) keys beside the query's own."""
    lens = list(LENGTHS)
    borders = torch.tensor([0, *torch.tensor(lens).cumsum(0)], dtype=torch.int32)

    def documented(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
        assert enable_gqa
        assert max_q == max_k == max(lens)
        left, right = window_size
        outputs = []
        for q_, k_, v_ in zip(q.split(lens), k.split(lens), v.split(lens), strict=True):
            n = len(q_)
            ahead = torch.arange(n)[None] - torch.arange(n)[:, None]
            seen = (ahead <= right) & ((ahead >= -left) | (left < 0))
            scores = torch.einsum("qhd,khd->hqk", q_, k_.repeat_interleave(2, dim=1)) * scale
            shares = scores.masked_fill(~seen, float("-inf")).softmax(-1)
            outputs.append(torch.einsum("hqk,khd->qhd", shares, v_.repeat_interleave(2, dim=1)))
        return torch.cat(outputs)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", documented)
    query, key, value = heads(sum(lens), dtype=torch.float16)
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    mark = torch.empty((1, 1, 0, 0), dtype=torch.bool)
    loop, _ = varlen_attention(
        module, query, key, value, mark, 0.3, sliding_window=window, cu_seq_lens_q=borders, max_length_q=max(lens)
    )
    fused = _fused(query, key, value, borders, max(lens), 0.3, window)
    assert fused.shape == loop.shape
    assert (fused - loop).abs().max().item() < 5e-3


def windowed(query, key, value, window, scale):
    """By one dense mask, for one segment."""
    n = query.shape[2]
    ahead = torch.arange(n)[None] - torch.arange(n)[:, None]
    seen = (ahead <= 0) & (ahead > -window)
    k, v = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    output = torch.nn.functional.scaled_dot_product_attention(query, k, v, attn_mask=seen, scale=scale)
    return output.transpose(1, 2)


@pytest.mark.parametrize("window", [1, 5, 256, 300, 599])
def test_blocks_of_a_segment_longer_than_the_window_give_the_same_result(window):
    lens = [600, 3, 257, 513]
    borders = torch.tensor([0, *torch.tensor(lens).cumsum(0)], dtype=torch.int32)
    inputs = heads(sum(lens), dtype=torch.float64)
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    mark = torch.empty((1, 1, 0, 0), dtype=torch.bool)
    blocks, _ = varlen_attention(
        module, *inputs, mark, 0.3, sliding_window=window, cu_seq_lens_q=borders, max_length_q=max(lens)
    )
    parts = zip(*(x.split(lens, dim=2) for x in inputs), strict=True)
    dense = torch.cat([windowed(q, k, v, window, 0.3) for q, k, v in parts], dim=1)
    assert (blocks - dense).abs().max().item() < 1e-12
    upstream = torch.randn(dense.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for mine, other in zip(
        torch.autograd.grad(blocks, inputs, upstream), torch.autograd.grad(dense, inputs, upstream), strict=True
    ):
        assert (mine - other).abs().max().item() < 1e-12


def test_a_sliding_window_needs_no_mask_of_the_whole_segment():
    tokens, window = 4096, 128
    inputs = heads(tokens)
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    mark = torch.empty((1, 1, 0, 0), dtype=torch.bool)
    borders = torch.tensor([0, tokens], dtype=torch.int32)

    def blocks():
        varlen_attention(module, *inputs, mark, 0.3, sliding_window=window, cu_seq_lens_q=borders, max_length_q=tokens)[
            0
        ].sum().backward()

    dense = peak_bytes(lambda: windowed(*inputs, window, 0.3).sum().backward())
    assert peak_bytes(blocks) < tokens**2 < dense, "a boolean mask takes tokens x tokens bytes"
