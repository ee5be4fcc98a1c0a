"""Weights on two ranks: a resumed run is bit-equal under DDP and FSDP2, and lost weights end it on both."""

import json

import pytest

from tests.distributed.launch import on_two_ranks
from tests.resumed import record

pytestmark = pytest.mark.distributed

FAMILIES = ("qwen3", "qwen3_moe", "mixtral", "qwen3_next", "qwen2_5_vl")


def found(tmp_path, cases):
    """What both ranks found for pairs of a kind of run and a family."""
    work = json.dumps(cases)
    one, other = on_two_ranks("tests.distributed.weights_worker", tmp_path, str(tmp_path), work, timeout=1200)
    assert one.keys() == other.keys() == {f"{kind}, {family}" for kind, family in cases}
    return {name: (number, other[name]) for name, number in one.items()}


def test_weights_come_back_on_both_ranks_or_end_both(tmp_path):
    family = "qwen3_moe"
    results = found(tmp_path, [("ddp", family), ("other_weights_on_rank_1", family), ("fsdp2", family)])
    assert results["ddp, qwen3_moe"] == results["fsdp2, qwen3_moe"] == (0, 0)
    here, there = results["other_weights_on_rank_1, qwen3_moe"]
    assert there.startswith("WeightsError: the weights in ")
    assert "not what was saved, of 25: 1 tensor (model.embed_tokens.weight)" in there
    assert here.startswith(f"PeerError: rank 1 failed, so rank 0 stops too. {there}")


@pytest.mark.families
@pytest.mark.parametrize(
    ("column", "kind"),
    [("DDP", "ddp"), ("FSDP2", "fsdp2"), ("FSDP2, next stage", "stage"), ("FSDP2, best model", "best")],
)
def test_families_resume_bit_equal_on_two_ranks(tmp_path, column, kind):
    for name, both in found(tmp_path, [(kind, family) for family in FAMILIES]).items():
        record(name.partition(", ")[2], column, both)
        assert both == (0, 0), name


@pytest.mark.families
def test_adapters_resume_bit_equal_on_two_ranks(tmp_path):
    results = found(tmp_path, [("adapter", "qwen3"), ("adapter", "qwen3_moe")])
    assert set(results.values()) == {(0, 0)}
