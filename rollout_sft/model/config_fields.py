"""Finds the names in `model.config` that are meant as another one.

transformers keeps every name of a configuration. The model reads its class's fields, and now and then a name that the
class lacks, such as `rope_theta`; which ones stands in its source. It ignores the rest, and vLLM may read some of that
(released configurations hold such names), so a name is refused only where it is clear what was meant.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from rollout_sft.config.shorten import cut, shorten

_GENERAL = ("configuration_utils", "modeling_rope_utils", "modeling_utils", "masking_utils", "cache_utils")
"""Modules of transformers that all models use."""
_READ_ANYWHERE = r"""kwargs\.(?:pop|get)\(\s*["']{0}["']|(?:get|has)attr\([\w.()]*config[\w.()]*,\s*["']{0}["']"""
_READ_BY_FAMILY = r"""["']{0}["']|config\.{0}\b"""
_SAME = (
    ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "depth"),
    ("num_attention_heads", "num_heads", "n_heads", "n_head"),
    ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_head_kv"),
    ("hidden_size", "d_model", "n_embd", "embed_dim", "hidden_dim", "dim"),
    ("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size", "mlp_dim"),
    ("max_position_embeddings", "max_seq_len", "max_seq_length", "max_sequence_length", "n_positions", "n_ctx"),
    ("attention_dropout", "dropout", "attn_pdrop", "attn_dropout"),
    ("hidden_act", "activation_function", "hidden_activation", "activation"),
    ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps"),
    ("num_experts", "num_local_experts", "n_routed_experts"),
)
"""Names that model families give to the same field."""
_PARTS = ("text_config", "vision_config", "audio_config")


def check_fields(plain: PretrainedConfig, fields: Mapping[str, Any], key: str) -> None:
    """
    Refuses names that the model ignores and that stand for a field of its configuration, or of a part of it.

    Args:
        plain (`PretrainedConfig`):
            A configuration of that type with its defaults.
        fields (`Mapping[str, Any]`):
            What the file gives.
        key (`str`):
            The section, for messages.

    Raises:
        `ValueError`: such a name is given; the message says which one may be meant.
    """
    for name, value in fields.items():
        part = getattr(plain, str(name), None)
        if isinstance(part, PretrainedConfig) and isinstance(value, Mapping):
            check_fields(part, value, f"{key}.{name}")
            continue
        advice = None if hasattr(plain, str(name)) else _advice(plain, str(name), key)
        if advice is not None and (name in _PARTS or not _is_read(plain, str(name))):
            raise ValueError(f"{key}.{cut(str(name), 60)} is {shorten(value)}, but {plain.model_type} {advice}")


def _advice(plain: PretrainedConfig, name: str, key: str) -> str | None:
    if name == "text_config":
        return f"is a text model; move its fields up to {key}."
    if name in _PARTS:
        return f"has no such part; leave it out, or set {key}.model_type to a model that has it."
    if (part := _part_with(plain, name)) is not None:
        return f"has this field in {part}; move it to {key}.{part}."
    same = [other for names in _SAME if name in names for other in names if hasattr(plain, other)]
    near = same or difflib.get_close_matches(name, vars(plain), n=1, cutoff=0.8)
    return f"has no such field; did you mean {near[0]}?" if near else None


def _is_read(plain: PretrainedConfig, name: str) -> bool:
    """Returns whether the model may read a name that its configuration class lacks; true if its code is not found."""
    if any(_occurs(_READ_ANYWHERE, name, _source(f"transformers.{module}") or "") for module in _GENERAL):
        return True
    if _part_with(plain, name) is not None:  # the code of the part reads it from there
        return False
    own = [owner.__module__ for owner in type(plain).__mro__ if ".models." in owner.__module__]
    own += [module.replace(".configuration_", ".modeling_") for module in own[:1]]
    sources = [_source(module) for module in own]
    return not own or any(source is None or _occurs(_READ_BY_FAMILY, name, source) for source in sources)


def _part_with(plain: PretrainedConfig, name: str) -> str | None:
    parts = {part: inner for part, inner in vars(plain).items() if isinstance(inner, PretrainedConfig)}
    return next((part for part, inner in parts.items() if hasattr(inner, name)), None)


def _occurs(pattern: str, name: str, source: str) -> bool:
    return re.search(pattern.format(re.escape(name)), source) is not None


def _source(module: str) -> str | None:
    try:
        spec = find_spec(module)
        return Path(str(spec.origin)).read_text(encoding="utf-8") if spec is not None else None
    except (ImportError, OSError):
        return None
