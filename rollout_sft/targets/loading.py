"""Makes target builders by name or import path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from rollout_sft.config.import_path import call_import_path
from rollout_sft.rollouts.end_tokens import find_end_tokens
from rollout_sft.rollouts.endings import make_endings
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
        `ValueError`: the name is neither, cannot be imported, does not take these arguments, or gives an object that
            lacks a method of a builder, or the one that `config.end_rollouts` needs.
    """
    name = config.target_builder
    if name == "objects":
        from rollout_sft.targets.objects.builder import ObjectsTargetBuilder

        return ObjectsTargetBuilder(
            tokenizer=tokenizer,
            end_tokens=find_end_tokens(tokenizer, config),
            iou_threshold=config.match_iou_threshold,
            supervise_desc=config.supervise_desc,
            prefix_supervision=config.prefix_supervision,
            ensure_ascii=config.ensure_ascii,
        )
    takes = "objects, or module:name of a callable (tokenizer, config) -> TargetBuilder"
    builder: TargetBuilder = call_import_path(
        name, tokenizer, config, key="rollout_matching.target_builder", takes=takes
    )
    lacking = [method for method in ("build", "build_reference", "score") if not hasattr(builder, method)]
    if lacking:
        raise ValueError(
            f"rollout_matching.target_builder: {name} gives a {type(builder).__name__} without "
            f"{' and '.join(lacking)}. A TargetBuilder has build(sample, rollout), build_reference(sample) and "
            "score(sample, rollout)."
        )
    make_endings(config.end_rollouts, builder)
    return builder
