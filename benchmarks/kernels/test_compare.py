"""The stand-in for causal-conv1d, and the script that compares kernels, on a CPU."""

import sys

import pytest
import torch

from benchmarks.kernels import compare
from tests.standins.kernels import PACKAGES


@pytest.fixture
def convolve(monkeypatch):
    monkeypatch.syspath_prepend(str(PACKAGES.with_name("packages_hybrids")))
    import causal_conv1d

    yield causal_conv1d.causal_conv1d_fn
    del sys.modules["causal_conv1d"]


def test_a_convolution_of_a_row_is_that_of_its_segments_alone(convolve):
    lens, draw = (2, 1, 9, 4), torch.Generator().manual_seed(0)
    row = torch.randn(1, sum(lens), 6, generator=draw, dtype=torch.float64).transpose(1, 2)
    weight, bias = torch.randn(6, 4, generator=draw, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    places = torch.repeat_interleave(torch.arange(4, dtype=torch.int32), torch.tensor(lens))[None]
    padded = [torch.nn.functional.pad(part, (3, 0)) for part in row.split(lens, dim=2)]
    alone = [torch.nn.functional.conv1d(part, weight[:, None], bias, groups=6) for part in padded]
    expected = torch.nn.functional.silu(torch.cat(alone, dim=2))
    found = convolve(row, weight, bias, seq_idx=places, activation="silu")
    assert float((found - expected).abs().max()) < 1e-14
    assert float((convolve(row, weight, bias, activation="silu") - expected).abs().max()) > 0.1
    with pytest.raises(AssertionError, match=r"must have dtype int32, has torch\.int64"):
        convolve(row, weight, bias, seq_idx=places.long())


@pytest.mark.parametrize("family", ["qwen3", "mistral"])
def test_the_comparison_of_kernels_finds_a_right_pack_and_missing_borders(family):
    measured = compare.measure(family, "sdpa", compare.ATTENTIONS[family], torch.float32, torch.device("cpu"))
    assert compare.verdict(*measured) == "right"
    pack, single, joined = measured
    assert compare.verdict(joined, single, joined).startswith("wrong")
    assert compare.verdict(pack, single, pack).startswith("blind")


def test_without_fla_its_rows_are_not_run():
    with pytest.raises(RuntimeError, match="fla is not installed"):
        compare.measure("qwen3_next", "fla", compare.WIDE, torch.float32, torch.device("cpu"))
