"""The ways that packs take on a GPU, with exact stand-ins for the kernels: arguments, borders, gradients."""

import copy
import json
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, set_seed

from rollout_sft.checks.leak_probe import LeakError, check_isolation
from rollout_sft.checks.probe_inputs import packed_inputs
from rollout_sft.inputs.segment import Segment
from rollout_sft.inputs.text import TextInputs
from rollout_sft.model.attention import VARLEN, choose_attention
from rollout_sft.model.forward import prepare_forward
from rollout_sft.model.recurrent import RecurrentLayers
from tests.families_table import RESULTS, record_kernel
from tests.hybrids import FLOAT32, TOLERANCE, float64_throughout
from tests.rollout_sft.step.test_image_gradients import TOLERANCE as TOLERANCE_OF_IMAGES
from tests.rollout_sft.step.test_image_gradients import differences
from tests.standins.kernels import flash_attention_2, varlen_on_cuda
from tests.tiny_families import tiny_config
from tests.tiny_images import CONFIGS, image_model

LENS = (7, 1, 12, 3, 20)
"""Segments around a window of 4 keys, one of a single token."""
WAYS = {"flash_attention_2": flash_attention_2, VARLEN: varlen_on_cuda}
SHAPES = {
    "sliding windows": ("mistral", {"sliding_window": 4}),
    "windows in some layers": (
        "gemma3_text",
        {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "grouped queries": ("qwen3", {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "one head for all queries": ("qwen2", {"num_attention_heads": 4, "num_key_value_heads": 1}),
    "experts": ("mixtral", {"sliding_window": 4}),
    "compressed keys": ("deepseek_v3", {}),
    "capped logits": (
        "gemma2",
        {"sliding_window": 4, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0},
    ),
    "learned positions": ("opt", {"dropout": 0.0}),
    "a convolution": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "a hybrid": ("qwen3_next", {}),
}
REFUSED = {
    "capped logits": "caps its attention logits",
    "a hybrid": "does not hand cu_seq_lens to attentions that are registered from outside",
}
LENGTHS = json.loads((RESULTS / "lengths.json").read_text())
FAMILIES = sorted(name for name, cells in LENGTHS.items() if cells.get("as it is", "").startswith("yes"))
"""The decoders that build tiny, from `make masks`; others take minutes or tens of gigabytes."""


def segments(vocabulary):
    made = []
    for n in LENS:
        draw = torch.Generator().manual_seed(n)
        ids = torch.randint(3, vocabulary, (n,), generator=draw).tolist()
        made.append(Segment.from_lists(ids, ids, [0.0] * n))
    return made


def gradient(model, outputs):
    """The gradient of a sum over all logits with fixed random factors, so that every position counts."""
    model.zero_grad()
    for logits, factors in outputs:
        (logits.log_softmax(-1) * factors).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def compare(family, way, overrides, monkeypatch, inputs=packed_inputs):
    """Returns the relative difference of a pack's gradient from the segments alone, the probe's leak, and the calls."""
    dtype = torch.float32 if family in FLOAT32 else torch.float64
    config = tiny_config(family, **overrides)
    if config is None:
        pytest.skip("its text model is nested")
    set_seed(0)
    plain = AutoModelForCausalLM.from_config(config, dtype=dtype, experts_implementation="eager").to(dtype).eval()
    if getattr(plain, "_supports_sdpa", False) and way == VARLEN:
        plain.set_attn_implementation("sdpa")
    else:
        plain.set_attn_implementation("eager")
    model = copy.deepcopy(plain)
    with float64_throughout(), WAYS[way](monkeypatch) as calls:
        calls.clear()
        if way == VARLEN:
            choose_attention(model, "varlen", device=torch.device("cpu"))
        else:
            model.set_attn_implementation(way)
        vocabulary = model.config.vocab_size
        made = segments(min(90, vocabulary))
        factors = torch.randn(sum(LENS), vocabulary, generator=torch.Generator().manual_seed(9), dtype=dtype)
        with RecurrentLayers(model, device=torch.device("cpu")).active():
            leak = check_isolation(model).leak
            probed = len(calls)
            packed = gradient(model, [(model(**prepare_forward(model, inputs(made, TextInputs()))).logits[0], factors)])
        kernel = calls[probed:]
        alone = [plain(input_ids=one.input_ids[None], use_cache=False).logits[0] for one in made]
        expected = gradient(plain, zip(alone, factors.split(LENS), strict=True))
    return float((packed - expected).norm() / expected.norm()), leak, kernel


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_pack_through_the_kernel_has_the_gradient_of_its_segments_alone(monkeypatch, shape, way):
    family, overrides = SHAPES[shape]
    if way == VARLEN and shape in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[shape]):
            compare(family, way, overrides, monkeypatch)
        return
    difference, leak, calls = compare(family, way, overrides, monkeypatch)
    # eager attention, the reference of flash_attention_2, has its softmax in float32
    assert difference < max(TOLERANCE.get(family, 0), 1e-6 if way == "flash_attention_2" else 1e-10)
    assert leak < 1e-10
    assert any(call["queries"] == list(LENS) for call in calls), "the kernel got the borders of the pack"
    if "sliding_window" in overrides:
        assert any(call["window"][0] == 3 for call in calls), "a window of 4 keys: 3 before the query's own"


def through_images(family, way, folder, monkeypatch):
    """A window of an image model through the real trainer: the differences of its gradient, and the calls."""
    with float64_throughout(), WAYS[way](monkeypatch) as calls:
        calls.clear()
        if way == VARLEN:
            return *differences(family, folder, "window, dense", attention="varlen")[1:], calls
        loaded = partial(image_model, attn_implementation=way)
        monkeypatch.setattr("tests.rollout_sft.step.test_image_gradients.image_model", loaded)
        return *differences(family, folder, "window, dense", attention="model")[1:], calls


@pytest.mark.parametrize(("family", "way"), [("qwen2_5_vl", VARLEN), ("qwen3_vl", "flash_attention_2")])
def test_packs_with_images_through_the_kernel_have_the_gradient_of_their_segments(tmp_path, monkeypatch, family, way):
    whole, tower, calls = through_images(family, way, tmp_path, monkeypatch)
    assert max(whole, tower) < 1e-10
    assert any(len(call.get("queries", ())) > 1 for call in calls)


@pytest.mark.families
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", CONFIGS)
def test_every_image_family_through_the_kernels(tmp_path, monkeypatch, family, way):
    try:
        whole, tower, calls = through_images(family, way, tmp_path, monkeypatch)
    except ValueError as error:
        record_kernel(family, way, f"refused: {str(error).splitlines()[0][:90]}")
        return
    record_kernel(family, way, max(whole, tower))
    assert max(whole, tower) < TOLERANCE_OF_IMAGES.get(family, 1e-10)
    assert any(len(call.get("queries", ())) > 1 for call in calls)


@pytest.mark.families
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_through_the_kernels(monkeypatch, family, way):
    try:
        difference, leak, calls = compare(family, way, {}, monkeypatch)
    except (ValueError, ImportError) as error:
        record_kernel(family, way, f"refused: {str(error).splitlines()[0][:90]}")
        return
    except Exception as error:
        if isinstance(error, AssertionError | torch.OutOfMemoryError):
            raise
        record_kernel(family, way, f"fails: {type(error).__name__}")
        return
    if not calls:
        record_kernel(family, way, "the kernel is not called")
        return
    record_kernel(family, way, difference)
    assert leak < 1e-5
    assert difference < 1e-5


@pytest.mark.parametrize("way", WAYS)
def test_a_length_that_is_too_short_is_stopped_by_the_kernel(monkeypatch, way):
    def short(made, adapter):
        given = packed_inputs(made, adapter)
        return {**given, "max_length_q": given["max_length_q"] - 1}

    with pytest.raises(AssertionError, match="max_seqlen_q is 19, but a segment has 20 tokens"):
        compare("qwen3", way, {}, monkeypatch, short)


@pytest.mark.parametrize("way", WAYS)
def test_exchanged_borders_are_seen_in_the_gradient(monkeypatch, way):
    def exchanged(made, adapter):
        given = packed_inputs(made, adapter)
        lens = given["cu_seq_lens_q"].diff().flip(0)
        borders = torch.cat([lens.new_zeros(1), lens.cumsum(0).to(torch.int32)])
        return {**given, "cu_seq_lens_q": borders, "cu_seq_lens_k": borders}

    assert compare("qwen3", way, {}, monkeypatch, exchanged)[0] > 1e-2


@pytest.mark.parametrize("way", WAYS)
def test_borders_that_join_two_segments_are_found_by_the_probe(monkeypatch, way):
    import rollout_sft.checks.leak_probe as probe

    right = probe.packed_inputs

    def joined(made, adapter):
        given = right(made, adapter)
        total = given["cu_seq_lens_q"][-1:]
        whole = torch.cat([total.new_zeros(1), total])
        return {
            **given,
            "cu_seq_lens_q": whole,
            "cu_seq_lens_k": whole,
            "max_length_q": int(total),
            "max_length_k": int(total),
        }

    monkeypatch.setattr(probe, "packed_inputs", joined)
    with pytest.raises(LeakError, match="packed segments see each other"):
        compare("qwen3", way, {}, monkeypatch)
