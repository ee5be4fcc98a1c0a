"""Layouts take tensors of torch and jax, without importing either."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from packsched import PackingError, PackLayout
from tests.packsched.layouts import multiples, some_lengths, token_table

ROOT = Path(__file__).resolve().parents[2]


@given(some_lengths, multiples)
def test_tensors_are_joined_and_cut_as_arrays_are(lens, multiple):
    torch = pytest.importorskip("torch")
    layout = PackLayout.from_lengths(lens, pad_to_multiple_of=multiple)
    tensors = [torch.arange(2.0 * n).reshape(n, 2) for n in lens]
    packed = layout.concat(tensors, pad_value=-1)
    expected = layout.concat([tensor.numpy() for tensor in tensors], pad_value=-1)
    assert isinstance(packed, torch.Tensor)
    assert packed.dtype == torch.float32
    assert packed.tolist() == expected.tolist()
    assert all(torch.equal(a, b) for a, b in zip(layout.split(packed), tensors, strict=True))
    assert torch.equal(layout.remap(len(lens) - 1, torch.tensor([0])), torch.tensor([sum(lens[:-1])]))
    assert layout.locate(torch.arange(sum(lens)))[0].tolist() == [s for s, _ in token_table(lens, 0)]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64"])
def test_narrow_integers_are_widened_before_the_offset_is_added(dtype):
    torch = pytest.importorskip("torch")
    layout = PackLayout.from_lengths([40_000, 300])
    packed = layout.remap(1, torch.tensor([5, 6], dtype=getattr(torch, dtype)))
    assert packed.dtype == torch.int64
    assert packed.tolist() == [40_005, 40_006]
    assert layout.remap(1, np.array([5, 6], dtype=dtype)).tolist() == [40_005, 40_006]
    # A meta tensor has no values at all: reading one would fail.
    assert layout.remap(1, torch.empty(3, dtype=getattr(torch, dtype), device="meta")).dtype == torch.int64
    assert layout.locate(torch.tensor([7], dtype=getattr(torch, dtype)))[1].tolist() == [7]


@pytest.mark.parametrize(("dtype", "hint"), [("bool", "flatnonzero"), ("float32", ""), ("bfloat16", "")])
def test_tensors_that_hold_no_integers_are_refused(dtype, hint):
    torch = pytest.importorskip("torch")
    layout = PackLayout.from_lengths([300, 300])
    mask = torch.ones(2, dtype=getattr(torch, dtype))
    with pytest.raises(PackingError, match=f"positions have dtype {dtype}; they must be integers.*{hint}"):
        layout.remap(1, mask)
    with pytest.raises(PackingError, match="positions"):
        layout.locate(mask)
    assert layout.remap(1, torch.tensor([])).dtype == torch.int64  # nothing in it that could be wrong
    with pytest.raises(PackingError, match="on the host"):
        layout.locate(torch.zeros(2, dtype=torch.int64, device="meta"))


def test_positions_of_jax_are_widened_by_their_own_method():
    class Array:
        """What JAX offers: a numpy dtype, a shape and astype."""

        def __init__(self, dtype):
            self.dtype, self.shape = np.dtype(dtype), (1,)

        def astype(self, dtype):
            return np.array([5], dtype=dtype)

    assert PackLayout.from_lengths([300, 300]).remap(1, Array("uint8")).tolist() == [305]
    with pytest.raises(PackingError, match="dtype bool"):
        PackLayout.from_lengths([300, 300]).remap(1, Array("bool"))


def test_ragged_positions_are_refused():
    layout = PackLayout.from_lengths([3, 2])
    for call in (lambda: layout.remap(0, [[1], [1, 2]]), lambda: layout.locate([[1], [1, 2]])):
        with pytest.raises(PackingError, match="positions of type list cannot be read as one integer array"):
            call()


@pytest.mark.parametrize("positions", [None, {1, 2}])
def test_positions_that_are_no_sequence_are_refused(positions):
    with pytest.raises(PackingError, match="give an integer, a sequence or an array"):
        PackLayout.from_lengths([3, 2]).remap(0, positions)


def test_boundaries_that_int32_cannot_hold_are_refused():
    assert PackLayout.from_lengths([2**31 - 2, 1]).cu_seqlens[-1] == 2**31 - 1
    with pytest.raises(PackingError, match=r"2147483653 tokens, 6 more than the 2147483647 .* int32"):
        _ = PackLayout.from_lengths([2**31, 5]).cu_seqlens


def test_gradients_flow_through_concat_and_split_and_padding_gets_none():
    torch = pytest.importorskip("torch")
    layout = PackLayout.from_lengths([3, 2], pad_to_multiple_of=8)
    tensors = [torch.nn.Parameter(torch.ones(n, dtype=torch.float64)) for n in (3, 2)]
    packed = layout.concat(tensors, pad_value=5)
    assert packed.dtype == torch.float64
    weights = torch.arange(8.0, dtype=torch.float64)
    sum(part.sum() for part in layout.split(packed * weights)).backward()
    assert [t.grad.tolist() for t in tensors] == [[0, 1, 2], [3, 4]]


def test_joining_numpy_arrays_loads_no_framework():
    code = (
        "import sys, numpy as np; from packsched import PackLayout; layout = PackLayout.from_lengths([1, 2]);"
        "layout.split(layout.concat([np.zeros(1), np.zeros(2)])); layout.remap(0, [0]); layout.locate([0]);"
        "sys.exit('torch' in sys.modules or 'jax' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
