"""Estimates what a segment costs from the shape of the model; scope `global` levels the ranks by it."""

from __future__ import annotations

from transformers import PretrainedConfig

from packsched import SegmentCost


def cost_of_model(config: PretrainedConfig) -> SegmentCost:
    """
    Counts the multiplications of a forward for a segment's tokens, and for its pairs of a token and an earlier one.

    Args:
        config (`PretrainedConfig`):
            The model's configuration. Sizes that it does not name are those of a classic transformer.

    Returns:
        [`~packsched.SegmentCost`]: only its ratios mean something. The head is left out: it computes the supervised
        positions alone, a twelfth of a segment in a typical run.
    """
    text = config.get_text_config()
    width, depth = text.hidden_size, text.num_hidden_layers
    heads = getattr(text, "num_attention_heads", None) or 1
    head = getattr(text, "head_dim", None) or width // heads
    groups = getattr(text, "num_key_value_heads", None) or heads
    inner = getattr(text, "intermediate_size", None) or 4 * width
    experts = getattr(text, "num_experts_per_tok", None)
    if experts:
        inner = experts * (getattr(text, "moe_intermediate_size", None) or inner)
    projections = 2 * width * (heads + groups) * head
    # A pair takes two multiplications per channel, score and value; causal attention has half the pairs.
    return SegmentCost(linear=depth * (projections + 3 * width * inner), quadratic=depth * heads * head)
