"""Names the keys that were set and that nothing in the run reads.

They are shown, not refused: files extend each other, and one that overrides the scope keeps the other's keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

from rollout_sft.config.arguments import ROLLOUT_MATCHING, RolloutSFTConfig


def _micro(args: RolloutSFTConfig) -> bool:
    return args.packing and args.post_rollout_pack_scope == "micro"


def _whole_windows(args: RolloutSFTConfig) -> bool:
    return args.packing and args.post_rollout_pack_scope != "micro"


def _costs(args: RolloutSFTConfig) -> bool:
    return _whole_windows(args) and (args.post_rollout_pack_scope == "global" or args.pack_objective == "cost")


READ: dict[str, tuple[str, Callable[[RolloutSFTConfig], bool]]] = {
    "pack_policy": ("in scope micro", _micro),
    "packing_buffer": ("in scope micro", _micro),
    "packing_min_fill_ratio": ("in scope micro", _micro),
    "pack_objective": ("in scopes window and global", _whole_windows),
    "on_infeasible": ("in scopes window and global", _whole_windows),
    "segment_cost": ("in scope global and with pack_objective cost", _costs),
    "on_oversized": ("with packing", lambda args: args.packing),
    "attention": ("with packing", lambda args: args.packing),
    "rollout_batch_size": ("with rollout_backend hf", lambda args: args.rollout_backend == "hf"),
    "save_total_limit": ("with a save_strategy other than no", lambda args: args.save_strategy != "no"),
}
"""Where a key is read, in words and as a test."""


def keys_without_effect(args: RolloutSFTConfig) -> str:
    """Returns the keys with another value than their default that this run never reads, each with where it is read."""
    return "; ".join(
        f"{_section(name)}.{name} (read only {where})"
        for name, (where, is_read) in READ.items()
        if getattr(args, name) != _DEFAULTS[name] and not is_read(args)
    )


def _section(name: str) -> str:
    return ROLLOUT_MATCHING.path if name in ROLLOUT_MATCHING.hints else "training"


def _default(spec: Any) -> Any:
    return spec.default if spec.default_factory is MISSING else spec.default_factory()


_DEFAULTS = {spec.name: _default(spec) for spec in fields(RolloutSFTConfig) if spec.name in READ}
