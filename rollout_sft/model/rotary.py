"""Gives every segment of a row the rotary frequencies that it has alone.

Rotary embeddings of type `dynamic` and `longrope` choose their frequencies by the longest position of the row, so one
long segment changes those of all its neighbours. `dynamic` also remembers the longest row of earlier forwards. While
[`~rollout_sft.model.recurrent.RecurrentLayers`] is active, such an embedding is computed for each segment alone, and
every call begins as if nothing had run before:

    pack        a a b b b b b b      b is longer than the original context
    positions   0 1 0 1 2 3 4 5
    calls       0 1 | 0 1 2 3 4 5    each chooses its own frequencies

The rows of a padded rectangle are computed in the same way. Costs a few small operations per segment and forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

STATIC = {"default", "linear", "llama3", "proportional", "yarn"}
"""Types of rotary embeddings whose frequencies are fixed by the configuration; any other type is run by segment."""


def rotary_by_row(model: nn.Module) -> dict[str, nn.Module]:
    """Finds the rotary embeddings whose frequencies may depend on the longest position of the row, by their names."""
    return {name: module for name, module in model.named_modules() if _types(module) - STATIC}


def _types(module: nn.Module) -> set[str]:
    """Returns the types of a rotary embedding; a model with several kinds of layers has one for each kind."""
    found: Any = getattr(module, "rope_type", None)
    return set(found.values()) if isinstance(found, dict) else {found} if isinstance(found, str) else set()


def frequency_borders(model: nn.Module) -> dict[str, int]:
    """
    Finds up to which length a row keeps the frequencies of a short one.

    Args:
        model (`nn.Module`):
            The unwrapped model.

    Returns:
        `dict[str, int]`: the number of tokens for each type of rotary embedding that is not in [`STATIC`]; 0 where the
        configuration does not say.
    """
    borders: dict[str, int] = {}
    for module in rotary_by_row(model).values():
        config: Any = module.config
        given = config.rope_parameters
        parts = [part for part in (given, *given.values()) if isinstance(part, dict)]
        lens = [
            part["original_max_position_embeddings"] for part in parts if "original_max_position_embeddings" in part
        ]
        lens += [config.max_position_embeddings] if getattr(config, "max_position_embeddings", None) else [0]
        for kind in _types(module) - STATIC:
            borders[kind] = min([*lens, *([borders[kind]] if kind in borders else [])])
    return borders


@torch.no_grad()
def forget_earlier_rows(rotary: nn.Module) -> None:
    """Puts a rotary embedding into the state of a new model, so that the next row does not depend on earlier ones."""
    state: Any = rotary
    for name, original in [(n, b) for n, b in rotary.named_buffers(recurse=False) if n.endswith("original_inv_freq")]:
        getattr(state, name.replace("original_", "")).copy_(original)
    for name in [name for name in vars(rotary) if name.endswith("max_seq_len_cached")]:
        setattr(state, name, state.original_max_seq_len)


def embed_apart(
    rotary: nn.Module,
    own: Callable[..., Any],
    arguments: tuple[Any, ...],
    named: dict[str, Any],
    *,
    borders: Sequence[int] | None,
    row_lens: Sequence[int] | None,
) -> Any:
    """
    Runs a rotary embedding for each segment, or each row, alone.

    Args:
        rotary (`nn.Module`):
            The embedding; its forward takes the hidden states and `position_ids`.
        own (`Callable`):
            Its forward.
        arguments, named (`tuple`, `dict`):
            What the forward was called with.
        borders (`Sequence[int]`, *optional*):
            Where each segment of a packed row begins and ends.
        row_lens (`Sequence[int]`, *optional*):
            Tokens of each row of a rectangle that is padded on the right.

    Returns:
        What the forward returns: a tensor or a tuple of tensors of shape `(..., rows, tokens, channels)`.
    """
    hidden, *further = arguments
    positions: Tensor = named.pop("position_ids") if "position_ids" in named else further.pop(0)
    tokens = positions.shape[-1]

    def alone(chosen: Tensor) -> Any:
        forget_earlier_rows(rotary)
        return own(hidden, chosen, *further, **named)

    if borders is not None and borders[-1] == tokens:
        return _joined([alone(positions[..., start:end]) for start, end in pairwise(borders)], dim=-2)
    if row_lens is not None and max(row_lens) == tokens:
        rows = positions.expand(*positions.shape[:-2], len(row_lens), tokens)
        kept = torch.arange(tokens, device=positions.device)  # behind a row its last position is repeated
        return _joined([alone(rows[..., i : i + 1, kept.clamp(max=n - 1)]) for i, n in enumerate(row_lens)], dim=-3)
    return alone(positions)


def _joined(parts: Sequence[Any], dim: int) -> Any:
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(column, dim=dim) for column in zip(*parts, strict=True))
    return torch.cat(list(parts), dim=dim)
