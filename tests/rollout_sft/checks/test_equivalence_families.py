"""Every window of real training equals its segments one by one, in families that read their row in different ways."""

import pytest
import torch

from tests.row_lengths import build, small_config
from tests.tiny_families import available

BORDER = 60
"""Answers are shorter and longer than this."""
FAST = {
    "phi3, longrope": ("phi3", "longrope"),
    "llama4, query scale": ("llama4_text", None),
    "qwen3, dynamic": ("qwen3", "dynamic"),
    "gemma3, sliding windows": ("gemma3_text", None),
}
REST = {
    "internlm3, dynamic": ("internlm3", "dynamic"),
    "phimoe, window in the mask": ("phimoe", "longrope"),
    "qwen3_moe, experts": ("qwen3_moe", None),
    "gpt_oss, sinks": ("gpt_oss", None),
    "bamba, hybrid": ("bamba", None),
    "glm_moe_dsa, top-k": ("glm_moe_dsa", None),
    "inkling, query scale": ("inkling_text", None),
}
SINGLE = ("bamba", "glm_moe_dsa", "inkling_text", "gemma3_text")
"""They compute parts in float32 whatever the dtype is."""


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *(pytest.param(*case, id=name) for name, case in available(FAST).items()),
        *(pytest.param(*case, id=name, marks=pytest.mark.families) for name, case in available(REST).items()),
    ],
)
def test_every_window_of_a_run_is_that_of_its_segments(make_trainer, tokenizer, family, kind):
    config, _ = small_config(family, kind, vocab_size=len(tokenizer))
    if kind == "longrope":
        config.rope_parameters["original_max_position_embeddings"] = BORDER
        config.original_max_position_embeddings = BORDER
    elif kind == "dynamic":
        config.max_position_embeddings = BORDER
    model = build(config, torch.float32 if family in SINGLE else torch.float64)
    trainer = make_trainer(model=model, post_rollout_pack_scope="window", validate_schedule="every_window", max_steps=2)
    trainer.train()
    lens = [n for pack in trainer.last_window for n in pack]
    assert max(len(pack) for pack in trainer.last_window) > 1
    assert min(lens) < BORDER < max(lens)
    lines = [line for line in trainer.state.log_history if "equivalence/gradient" in line]
    assert len(lines) == trainer.state.global_step == 2
