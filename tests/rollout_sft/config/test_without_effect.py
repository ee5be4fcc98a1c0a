"""Keys that nothing reads stand on the first page, and no others."""

import pytest

from rollout_sft import RolloutSFTConfig
from rollout_sft.config.without_effect import READ, keys_without_effect
from rollout_sft.overview import step_facts

SET = {
    "pack_policy": "fifo",
    "packing_buffer": 7,
    "packing_min_fill_ratio": 0.5,
    "pack_objective": "balanced",
    "on_infeasible": "extra_steps",
    "segment_cost": {"token": 3},
    "on_oversized": "skip",
    "attention": "model",
    "rollout_batch_size": 4,
    "save_total_limit": 2,
}
MICRO = {"pack_policy", "packing_buffer", "packing_min_fill_ratio"}
WHOLE = {"pack_objective", "on_infeasible", "segment_cost"}
VLLM = {"rollout_backend": "vllm", "vllm": {"mode": "server", "base_url": "http://127.0.0.1:1"}}


def config(**settings):
    return RolloutSFTConfig(output_dir="unused", global_max_length=64, use_cpu=True, **settings)


def shown(args):
    page = step_facts(args, 8).get("without effect", "")
    return {name for name in READ if f".{name} (read only " in page}


@pytest.mark.parametrize(
    ("settings", "unread"),
    [
        ({"post_rollout_pack_scope": "micro"}, WHOLE),
        ({"post_rollout_pack_scope": "window"}, {*MICRO, "segment_cost"}),
        ({"post_rollout_pack_scope": "window", "pack_objective": "cost"}, MICRO),
        ({"post_rollout_pack_scope": "global"}, MICRO),
        ({"packing": False}, MICRO | WHOLE | {"on_oversized", "attention"}),
        ({"post_rollout_pack_scope": "global", "save_strategy": "no"}, {*MICRO, "save_total_limit"}),
        ({"post_rollout_pack_scope": "global", **VLLM}, {*MICRO, "rollout_batch_size"}),
    ],
    ids=["micro", "window", "cost", "global", "no packing", "no saves", "vllm"],
)
def test_the_page_names_what_was_set_and_is_not_read(settings, unread):
    args = config(**{**SET, **settings})
    assert shown(args) == unread
    assert shown(config(**settings)) == set(), "defaults are not worth a word"


def test_a_key_is_named_with_its_section_and_where_it_is_read():
    args = config(post_rollout_pack_scope="window", pack_policy="fifo", packing_buffer=7)
    assert keys_without_effect(args) == (
        "rollout_matching.pack_policy (read only in scope micro); training.packing_buffer (read only in scope micro)"
    )
