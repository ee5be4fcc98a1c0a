"""Describes what a run trains with besides its arguments: model, adapter, base weights, tokenizer, image processor.

The objects in memory are described, not the paths they came from. So a folder that was moved is the same, one that was
rewritten in place is not, and a model made in Python is compared like one from a hub. Everything that a configuration
holds counts, whatever it is good for; only what says where it came from is left out.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from rollout_sft.ranks.zero3 import whole_shape

_ORIGINS = {
    # where a configuration came from, and which version wrote it; versions are compared by themselves
    *("_name_or_path", "transformers_version", "architectures", "_from_model_config"),
    *("base_model_name_or_path", "revision", "peft_version", "inference_mode"),
    # the Trainer takes these from the tokenizer; the types of the weights are in the model's shape
    *("bos_token_id", "pad_token_id", "dtype", "torch_dtype"),
}


def describe_parts(
    model: nn.Module,
    *,
    tokenizer: Any,
    image_processor: Any = None,
    target_builder: Any = None,
    optimizers: Any = None,
) -> dict[str, Any]:
    """
    Describes the parts of a trainer; takes milliseconds, about a second for a large tokenizer.

    Call it before the trainer is made: the Trainer changes configurations when training begins.

    Args:
        model (`nn.Module`):
            The model, with its adapter; not its weights, see [`digest_base`].
        tokenizer (`PreTrainedTokenizerBase`):
            Vocabulary, rules, special tokens and chat template count.
        image_processor (`BaseImageProcessor`, *optional*):
            Its whole configuration counts.
        target_builder (`TargetBuilder`, *optional*):
            Its class counts; neither its code nor its state.
        optimizers (`tuple`, *optional*):
            The optimizer and the scheduler, or the optimizer's class and arguments, if they do not follow from the
            arguments of the run.

    Returns:
        `dict[str, Any]`: key to value, with the keys under which a resume names a change.
    """
    whole: Any = model
    plain = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
    config: Any = getattr(plain, "config", None)
    generation: Any = getattr(plain, "generation_config", None)
    found: dict[str, Any] = {"model": _shape(model)}
    if hasattr(config, "to_dict"):
        found |= flat("model.config", config.to_dict())
        found["model.attn_implementation"] = getattr(config, "_attn_implementation", None)
    if hasattr(generation, "to_dict"):
        found |= flat("model.generation_config", generation.to_dict())
    for name, adapter in getattr(model, "peft_config", {}).items():
        found |= flat("model.peft" if name == "default" else f"model.peft.{name}", adapter.to_dict())
    found |= _describe_tokenizer(tokenizer)
    if image_processor is not None:
        found |= flat("image_processor", image_processor.to_dict())
    if target_builder is not None:
        found["target_builder"] = _name(type(target_builder))
    for name, given in zip(("optimizer", "optimizer.scheduler"), optimizers or (), strict=False):
        if given is not None:
            found[name] = _name(given if isinstance(given, type) else type(given))
            if groups := getattr(given, "param_groups", None):
                found[f"{name}.groups"] = [{k: v for k, v in group.items() if k != "params"} for group in groups]
    return found


def digest_base(model: nn.Module) -> str | None:
    """
    Digests the weights and buffers below an adapter, which no checkpoint holds; 0.04 s a GB of weights on a CPU.

    Args:
        model (`nn.Module`):
            The model; of a sharded one, this rank's shards are digested.

    Returns:
        `str` or `None`: the same text for the same names, types, shapes and bytes; None for a model without an adapter.
    """
    if not hasattr(model, "peft_config"):
        return None
    digest, size = xxhash.xxh3_128(), 0
    for name, tensor in _frozen(model):
        local = getattr(tensor, "ds_tensor", tensor).detach()  # DeepSpeed's ZeRO-3 leaves the tensor itself empty
        local = local.to_local() if hasattr(local, "to_local") else local
        digest.update(f"{name} {tuple(local.shape)} {local.dtype};".encode())
        digest.update(local.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
        size += local.numel()
    return f"{size} values, {digest.hexdigest()}"


def flat(key: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of nested mappings by dotted keys, without those that say where they came from."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name in _ORIGINS:
            continue
        path = f"{key}.{name}"
        if isinstance(value, Mapping) and value:
            found |= flat(path, value)
        else:
            found[path] = sorted(value, key=str) if isinstance(value, set | frozenset) else value
    return found


def _frozen(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    seen = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and not tensor.requires_grad and id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def _describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = sorted(tokenizer.get_vocab().items()) if backend is None else json.loads(backend.to_str())
    if isinstance(rules, dict):  # what the last call asked for
        rules.update(padding=None, truncation=None)
    switches = {key: value for key, value in tokenizer.init_kwargs.items() if isinstance(value, bool)}
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    return {
        "tokenizer": f"{len(tokenizer)} tokens, {_checksum([rules, switches])}",
        "tokenizer.special_tokens": special,
        "tokenizer.chat_template": _checksum(getattr(tokenizer, "chat_template", None)),
    }


def _checksum(value: Any) -> str:
    return f"{zlib.crc32(json.dumps(value, sort_keys=True, default=str).encode()):08x}"


def _shape(model: nn.Module) -> str:
    parameters = [f"{name} {tuple(whole_shape(p))} {p.dtype} {p.requires_grad}" for name, p in model.named_parameters()]
    size = sum(whole_shape(p).numel() for p in model.parameters())
    return f"{size} parameters, {zlib.crc32(chr(10).join(parameters).encode()):08x}"


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"
