"""What a segment costs: from the model's shape, its images included, or as it is configured."""

import pytest
import torch
from transformers import LlamaConfig, MixtralConfig, PretrainedConfig, Qwen2VLConfig

from packsched import Pack
from rollout_sft.config.segment_cost import SegmentCostConfig
from rollout_sft.inputs.images import Image
from rollout_sft.inputs.segment import Segment, pack_of
from rollout_sft.step.pack_times import PackSums, PackTimes
from rollout_sft.step.segment_cost import ModelCost, weights_of_model

LLAMA = LlamaConfig(
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    vocab_size=100,
)


def segment(length, supervised=1, images=()):
    weights = [1.0] * supervised + [0.0] * (length - supervised)
    made = Segment.from_lists([1] * length, [1] * length, weights)
    return Segment(**{**vars(made), "images": images})


def test_the_weights_count_the_multiplications_of_a_forward():
    weights = weights_of_model(LLAMA)
    projections = 64 * 64 + 2 * 64 * 32 + 64 * 64  # q; k and v of two groups; o
    assert weights.token == 3 * (projections + 3 * 64 * 96)
    assert weights.pair == 3 * 64
    assert weights.supervised == 64 * 100
    assert (weights.patch, weights.patch_pair) == (0, 0)


def test_a_mixture_costs_the_experts_that_a_token_takes():
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    one, two = (weights_of_model(MixtralConfig(num_experts_per_tok=k, **shape)).token for k in (1, 2))
    assert two - one == 2 * 3 * 64 * 128


def test_the_image_tower_of_a_model_is_counted():
    model = Qwen2VLConfig(
        text_config={"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96},
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 14},
    )
    cost = ModelCost(SegmentCostConfig(), model, seen_size=lambda image: (image.height, image.width))
    image = Image(source="a.png", height=28, width=42)
    tower = cost(segment(20, images=(image,))) - cost(segment(20))
    assert tower == cost.weights.patch * 6 + cost.weights.patch_pair * 36
    assert cost.weights.patch > 0
    assert cost.weights.patch_pair == 2 * 2 * 32


def test_configured_costs_replace_those_of_the_model():
    cost = ModelCost(SegmentCostConfig(token=10, pair=2, supervised=5), LLAMA, seen_size=lambda _: (0, 0))
    assert cost(segment(4, supervised=3)) == 40 + 32 + 15


def test_a_model_that_names_no_sizes_needs_configured_costs():
    with pytest.raises(ValueError, match=r"rollout_matching.segment_cost: \{token"):
        ModelCost(SegmentCostConfig(), PretrainedConfig(), seen_size=lambda _: (0, 0))
    ModelCost(SegmentCostConfig(token=1), PretrainedConfig(), seen_size=lambda _: (0, 0))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"pair": 3}, "segment_cost.token is 0, but"),
        ({"token": -1}, "segment_cost.token is -1"),
        ({"token": 0.5}, "token is 0.5"),
    ],
)
def test_costs_that_make_no_sense_are_refused(values, text):
    with pytest.raises(ValueError, match=text):
        SegmentCostConfig(**values)


def test_the_fit_finds_what_tokens_and_pairs_take():
    sums = sum(
        (
            PackSums.of_pack(lens, 1, 3e-4 * sum(lens) + 2e-7 * sum(n * n for n in lens))
            for lens in [[5, 9], [100], [40, 7]]
        ),
        PackSums(),
    )
    assert sums.pair_over_token() == pytest.approx(2e-7 / 3e-4, rel=1e-6)
    assert PackSums.of_pack([5, 9], 1, 0.5).pair_over_token() is None, "one pack cannot tell them apart"


def test_only_packs_that_wait_for_no_other_rank_are_timed():
    times = PackTimes(torch.device("cpu"), active=True)
    pack: Pack[Segment] = pack_of([segment(3), segment(4)])
    for synchronises, trained in ((False, pack), (True, pack), (False, pack_of(()))):
        with times.timed(trained, synchronises=synchronises):
            pass
    sums = times.take(lambda one: one.encoded_len)
    assert (sums.cost, sums.tokens_tokens) == (7, 49.0)
    assert sums.seconds > 0
    assert times.take(lambda one: 1) == PackSums()
    sharded = PackTimes(torch.device("cpu"), active=False)
    with sharded.timed(pack, synchronises=False):
        pass
    assert sharded.take(lambda one: 1) == PackSums()
