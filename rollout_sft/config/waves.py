"""Refuses settings that `rollout_matching.rollout_waves` cannot be combined with."""

from __future__ import annotations

from typing import Any


def check_waves(config: Any) -> None:
    """
    Raises `ValueError` when a window cannot be trained in waves.

    Args:
        config (`RolloutSFTConfig`):
            All settings.
    """
    if config.rollout_waves == 1:
        return
    problem = _problem(config)
    if problem:
        raise ValueError(f"rollout_matching.rollout_waves is {config.rollout_waves}, but {problem}")


def _problem(config: Any) -> str:
    if not config.packing:
        return (
            "training.packing is false: each micro-batch is trained by itself, and most hold a long response, so none "
            "could be trained early. Set rollout_waves: 1, or packing: true."
        )
    if config.post_rollout_pack_scope == "micro":
        return (
            "rollout_matching.post_rollout_pack_scope is micro: what its packs hold depends on the order of the "
            "micro-batches, and waves come in another order. Set rollout_waves: 1, or post_rollout_pack_scope: window."
        )
    if config.post_rollout_pack_scope == "global":
        return (
            "rollout_matching.post_rollout_pack_scope is global: segments move between ranks once the whole window is "
            "known. Set rollout_waves: 1, or post_rollout_pack_scope: window."
        )
    if config.loss_reduction == "micro":
        return (
            "rollout_matching.loss_reduction is micro: the weight of a token follows from all answers of its "
            "micro-batch, and waves train some before others are known. Set rollout_waves: 1, or loss_reduction: token "
            "or segment."
        )
    return ""
