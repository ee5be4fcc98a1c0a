"""Probes the image families with images in their segments; `benchmarks.mask_table` writes the table."""

from __future__ import annotations

import torch

from rollout_sft.checks.leak_probe import LeakError, check_isolation
from rollout_sft.inputs.choose import IMAGE_MODELS, make_adapter
from rollout_sft.model.attention import VARLEN, choose_attention
from rollout_sft.model.recurrent import RecurrentLayers
from tests.tiny_images import image_model, image_processor, image_tokenizer

CPU = torch.device("cpu")
ATTENTIONS = ("eager", "sdpa", VARLEN)


def section() -> str:
    """The table of the image families: leak, and distance from a plain forward."""
    lines = [f"| {family} | " + " | ".join(cell(family, a) for a in ATTENTIONS) + " |" for family in IMAGE_MODELS]
    header = f"| family | {' | '.join(ATTENTIONS)} |\n|---|{'---|' * len(ATTENTIONS)}\n"
    return (
        "Each probed segment holds two images. The number is the largest distance of the packed logits from those of "
        "the model's own plain forward, relative to the largest logit; with wrong positions, or images in the wrong "
        "order, it is .06 and more.\n\n" + header + "\n".join(lines) + "\n\nOther image models are refused by name, "
        "since how they join the images of several segments was never compared with each alone. gemma3 was: its logits "
        "in packs are wrong by .36 to .45, since image tokens attend both ways, and its sliding layers look the blocks "
        "up at positions that packing changes. Videos are refused as well."
    )


def cell(family: str, attention: str) -> str:
    """What the probe finds for one family with one attention, its recurrent layers run segment by segment."""
    own = {} if attention == VARLEN else {"attn_implementation": attention}
    model = image_model(family, torch.float32, **own)
    if attention == VARLEN:
        try:
            choose_attention(model, "varlen", device=CPU)
        except ValueError:
            return "-"
    adapter = make_adapter(model.config, image_tokenizer(), image_processor(family))
    try:
        with RecurrentLayers(model, device=CPU).active():
            report = check_isolation(model, adapter=adapter)
    except LeakError:
        return "**leaks**"
    return f"isolated, {report.alone:.0e}"
