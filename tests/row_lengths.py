"""Tiny models whose configurations hold small lengths alone, and their gradients at lengths around all of them."""

import copy
import re
from contextlib import nullcontext

import torch
from transformers import AutoModelForCausalLM, set_seed

from rollout_sft.inputs.segment import Segment, pack_of
from rollout_sft.model.attention import choose_attention
from rollout_sft.model.forward import prepare_forward
from rollout_sft.model.recurrent import RecurrentLayers
from rollout_sft.step.collate import forward_inputs
from tests.hybrids import float64_throughout
from tests.tiny_families import tiny_config

CPU = torch.device("cpu")
LENGTHS = (10, 12, 40, 14, 31, 9, 44, 33, 32)
"""Some are shorter and some longer than every small length, and one is as long as the original context."""
BORDER = 32
"""The original context of rotary embeddings that look at the longest position."""
ROTARY = ("dynamic", "longrope")
LENGTH = re.compile(
    r"window|chunk|floor|topk|block_size|budget|extent|local_attention|context_length|compress_rate|max_distance"
    r"|original_max|model_max_length"
)
NO_LENGTH = re.compile(r"pattern|max_window_layers|audio_|vision_|encoder_|moe_topk|topk_group|topk_method|scheme")
SMALL = {"topk": 8, "block_size": 8, "original_max": BORDER}
"""What a length is made; 16 for the others."""

READ_BY_ROW = {
    "phi3, longrope": ("phi3", "longrope"),
    "phimoe, longrope": ("phimoe", "longrope"),
    "llama, longrope": ("llama", "longrope"),
    "llama, dynamic": ("llama", "dynamic"),
    "qwen3, dynamic": ("qwen3", "dynamic"),
    "internlm3, dynamic": ("internlm3", "dynamic"),
    "gemma3, each kind of layer": ("gemma3_text", "dynamic"),
    "llama4, query scale": ("llama4_text", None),
}
"""Families whose forward depends on the whole row, and the frequencies with which it does."""


def rotary_parameters(config, kind):
    """The configuration's own parameters with another type of frequencies; None for a family without them."""
    given = getattr(config, "rope_parameters", None)
    if not given:
        return None
    if any(isinstance(part, dict) for part in given.values()):
        return {name: part and _parameters(_part_of(config, name), part, kind) for name, part in given.items()}
    return _parameters(config, given, kind)


def _part_of(config, layer_type):
    """What layers of one type read: their sizes may differ from those of others."""
    try:
        return config.per_layer_config[layer_type]
    except ValueError:
        return config


def _parameters(config, given, kind):
    made = {"rope_theta": 10000.0, **given, "rope_type": kind, "factor": 4.0}
    if given["rope_type"] == "proportional":  # it alone fills the channels that are not rotated
        del made["partial_rotary_factor"]
    if config.model_type == "phimoe":
        made |= {"short_mscale": 1.1, "long_mscale": 1.4}
    if kind == "longrope":
        size = getattr(config, "qk_rope_head_dim", None) or getattr(config, "head_dim", None)
        channels = size or config.hidden_size // config.num_attention_heads
        count = int(channels * made.get("partial_rotary_factor", 1.0)) // 2
        made |= {
            "short_factor": [1.0 + 0.1 * i for i in range(count)],
            "long_factor": [2.0 + 1.5 * i for i in range(count)],
            "original_max_position_embeddings": BORDER,
        }
    return made


def small_lengths(config):
    """Every field that may be a length, made smaller than the longest segment; also those that are not set."""
    found = {}
    for name, value in config.to_dict().items():
        length = LENGTH.search(name)
        if not length or NO_LENGTH.search(name) or isinstance(value, bool):
            continue
        if (isinstance(value, int) and value > 1) or (value is None and "int" in str(_annotation(config, name))):
            found[name] = SMALL.get(length[0], 16)
    return found


def _annotation(config, name):
    return next((vars(c)["__annotations__"][name] for c in type(config).__mro__ if name in _annotated(c)), "")


def _annotated(owner):
    return vars(owner).get("__annotations__", {})


def small_config(family, kind=None, **overrides):
    """A configuration with small lengths, and what was made small; None for a family without rotary parameters."""
    plain = tiny_config(family)
    if plain is None:
        return None
    changed = small_lengths(plain)
    if kind is not None:
        parameters = rotary_parameters(plain, kind)
        if parameters is None:
            return None
        changed |= {"rope_parameters": parameters}
        if plain.to_dict().get("head_dim", 0) is None:  # `dynamic` takes None for a size
            changed["head_dim"] = plain.hidden_size // plain.num_attention_heads
        if kind == "dynamic":
            changed["max_position_embeddings"] = BORDER
    changed |= overrides
    while True:
        try:
            return tiny_config(family, **changed), changed
        except Exception as error:
            refused = [name for name in changed if name in str(error) and name not in ("rope_parameters", *overrides)]
            if not refused:
                raise
            del changed[refused[0]]


def build(config, dtype=torch.float64):
    """The same weights in every call, in evaluation mode; experts are those that know float64."""
    set_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype, experts_implementation="eager").eval()


def parts(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(3, 90, (n,), generator=generator).tolist() for n in lengths]
    return [Segment.from_lists(ids, ids, [0.0] * len(ids)) for ids in drawn]


def gradient(model, forwards):
    """Of a sum over all logits that no symmetry makes zero; zeros for parameters without a part."""
    model.zero_grad()
    for inputs in forwards:
        logits = model(**inputs).logits.double()
        (logits.logsumexp(-1) - logits[..., 5]).sum().backward()
    found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
    return torch.cat([g.reshape(-1).double() for g in found])


def alone(model, segments):
    """The gradient of each segment by a plain forward of a model that has run nothing before."""
    forwards = [{"input_ids": s.input_ids[None], "use_cache": False} for s in segments]
    return sum(gradient(copy.deepcopy(model), [forward]) for forward in forwards)


def packed(model, segments):
    return gradient(model, [prepare_forward(model, forward_inputs(pack_of(segments)))])


def as_trained(model):
    """The attention and the layers by segment as the trainer chooses them."""
    choose_attention(model, "auto", device=CPU)
    return RecurrentLayers(model, device=CPU)


def difference(model, segments=None):
    """How far the gradient of a pack is from that of its segments alone, relative, the second time it runs."""
    segments = segments or parts()
    with float64_throughout() if model.dtype == torch.float64 else nullcontext():
        expected = alone(model, segments)
        with as_trained(model).active():
            packed(model, segments[::-1])
            found = packed(model, segments)
    return float((found - expected).norm() / expected.norm())
