"""Target builders, by name or import path."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from rollout_sft.targets.base import TargetBuilder

if TYPE_CHECKING:
    from rollout_sft.config.arguments import RolloutSFTConfig


def make_target_builder(tokenizer: PreTrainedTokenizerBase, config: RolloutSFTConfig) -> TargetBuilder:
    """
    Makes the builder that `rollout_matching.target_builder` names.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The model's tokenizer.
        config (`RolloutSFTConfig`):
            `target_builder` is `objects`, or `module:name` of a callable that takes `(tokenizer, config)`.

    Returns:
        `TargetBuilder`: The builder.

    Raises:
        `ValueError`: the name is neither, or cannot be imported.
    """
    name = config.target_builder
    if name == "objects":
        from rollout_sft.targets.objects.builder import ObjectsTargetBuilder

        return ObjectsTargetBuilder(
            tokenizer=tokenizer,
            iou_threshold=config.match_iou_threshold,
            supervise_desc=config.supervise_desc,
            boundary_supervision=config.boundary_supervision,
        )
    module, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"rollout_matching.target_builder is {name!r}; it takes objects or module:name of a callable "
            f"(tokenizer, config) -> TargetBuilder. {type(error).__name__}: {error}"
        ) from error
    builder: TargetBuilder = factory(tokenizer, config)
    return builder
