"""What concat joins, split cuts again, of any shape and along any axis."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packsched import PackingError, PackLayout
from tests.packsched.layouts import multiples, some_lengths


@given(some_lengths, multiples, st.sampled_from([(), (2,), (2, 3)]))
def test_split_undoes_concat(lens, multiple, trailing):
    layout = PackLayout.from_lengths(lens, pad_to_multiple_of=multiple)
    arrays = [np.random.default_rng(k).integers(0, 99, (n, *trailing)) for k, n in enumerate(lens)]
    packed = layout.concat(arrays, pad_value=-100)
    assert packed.shape == (layout.total, *trailing)
    assert packed.dtype == arrays[0].dtype
    assert (packed[layout.tokens :] == -100).all()
    parts = layout.split(packed)
    assert len(parts) == len(lens)
    assert all((part == array).all() for part, array in zip(parts, arrays, strict=True))


@given(some_lengths, multiples, st.integers(1, 5), st.sampled_from([0, 1, -1, -2]))
def test_split_undoes_concat_along_any_axis(lens, multiple, segment_multiple, axis):
    layout = PackLayout.from_lengths(lens, pad_to_multiple_of=multiple, segment_multiple=segment_multiple)
    shape = [2, 2]
    arrays = []
    for k, n in enumerate(lens):
        shape[axis] = n
        arrays.append(np.random.default_rng(k).integers(0, 99, shape))
    packed = layout.concat(arrays, axis=axis, pad_value=-100)
    shape[axis] = layout.total
    assert packed.shape == tuple(shape)
    along = np.moveaxis(packed, axis, 0)
    assert (along[layout.segment_ids == len(lens)] == -100).all()
    parts = layout.split(packed, axis=axis)
    assert all((part == array).all() for part, array in zip(parts, arrays, strict=True))
    assert len(parts) == len(lens)


def test_rows_of_tensors_are_joined_along_the_last_axis():
    torch = pytest.importorskip("torch")
    layout = PackLayout.from_lengths([3, 2], segment_multiple=4)
    rows = [torch.arange(n).expand(3, n) for n in (3, 2)]  # as mrope's positions
    packed = layout.concat(rows, axis=-1, pad_value=0)
    assert packed[2].tolist() == [0, 1, 2, 0, 0, 1, 0, 0]
    assert [part.tolist() for part in layout.split(packed, axis=-1)] == [row.tolist() for row in rows]
    with pytest.raises(PackingError, match=r"array 0 has shape \(3, 3\), but .* dimension 2 must be 3"):
        layout.concat(rows, axis=2, pad_value=0)
    with pytest.raises(PackingError, match="got 3 packed positions, but the layout has 8"):
        layout.split(packed, axis=0)


@pytest.mark.parametrize(
    ("dtype", "pad_value"),
    [(np.uint8, -100), (np.int8, 300), (np.int64, 0.5), (np.float32, 1e300), (np.bool_, 2), (np.int32, float("nan"))],
)
def test_a_pad_value_that_the_dtype_cannot_hold_is_refused(dtype, pad_value):
    layout = PackLayout.from_lengths([3], pad_to_multiple_of=4)
    with np.errstate(all="ignore"), pytest.raises(PackingError, match=r"pad_value is .*, which .* cannot hold"):
        layout.concat([np.ones(3, dtype=dtype)], pad_value=pad_value)


@pytest.mark.parametrize(("dtype", "pad_value"), [("bfloat16", 0.1), ("float32", float("nan")), ("uint8", 255)])
def test_a_pad_value_that_the_dtype_holds_is_taken(dtype, pad_value):
    torch = pytest.importorskip("torch")
    layout = PackLayout.from_lengths([3], pad_to_multiple_of=4)
    packed = layout.concat([torch.ones(3).to(getattr(torch, dtype))], pad_value=pad_value)
    assert packed[-1].item() == pytest.approx(pad_value, rel=1e-2, nan_ok=True)


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.bool_])
def test_padding_does_not_change_the_dtype(dtype):
    packed = PackLayout.from_lengths([3], pad_to_multiple_of=4).concat([np.ones(3, dtype=dtype)], pad_value=0)
    assert packed.dtype == dtype


def test_split_takes_anything_that_slices():
    assert PackLayout.from_lengths([3, 2]).split("abcde") == ["abc", "de"]
    assert PackLayout.from_lengths([3, 2], pad_to_multiple_of=4).split([*"abcde", 0, 0, 0]) == [
        [*"abc"],
        [*"de"],
    ]


def test_split_gives_views_of_an_array():
    packed = np.zeros(5)
    PackLayout.from_lengths([3, 2]).split(packed)[1][:] = 1
    assert packed.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([np.zeros(3)], r"^got 1 arrays for 2 segments; give one for each\.$"),
        (
            [np.zeros(3), np.zeros((3, 2))],
            r"^array 1 has shape \(3, 2\), but segment 1 has encoded_len 2; the first dimension must be 2\.$",
        ),
        ([np.zeros(3), np.float64(1)], r"^array 1 has shape \(\), but segment 1 has encoded_len 2;"),
        ([[1, 2, 3], [4, 5]], r"^array 0 is a list; give arrays of numpy, torch or JAX\.$"),
        ([np.zeros(3), np.zeros(2)], r"^the layout has 3 tokens of padding; give pad_value\.$"),
    ],
)
def test_concat_refuses_arrays_that_do_not_match_the_layout(arrays, message):
    with pytest.raises(PackingError, match=message):
        PackLayout.from_lengths([3, 2], pad_to_multiple_of=8).concat(arrays)


def test_concat_of_an_empty_pack_is_refused_for_want_of_an_array():
    with pytest.raises(PackingError, match=r"^an empty pack has nothing to concatenate; build its dummy"):
        PackLayout.from_lengths([]).concat([])


@pytest.mark.parametrize("length", [5, 9])
def test_split_refuses_another_length(length):
    message = rf"^got {length} packed positions, but the layout has 8 \(2 segments, 3 tokens of padding\)\.$"
    with pytest.raises(PackingError, match=message):
        PackLayout.from_lengths([3, 2], pad_to_multiple_of=8).split(np.zeros(length))


def test_an_array_of_an_unknown_framework_is_refused():
    class Strange:
        shape = (3,)

    with pytest.raises(PackingError, match=r"^cannot concatenate objects of type Strange; give arrays of numpy"):
        PackLayout.from_lengths([3]).concat([Strange()])


def test_an_array_that_names_its_namespace_is_joined_by_it():
    """JAX arrays: their class lives in jaxlib, which has no `concatenate` of its own."""

    class Namespace:
        float32 = "float32"

        @staticmethod
        def concatenate(parts, axis):
            assert axis == 0
            return [number for part in parts for number in part.numbers]

        @staticmethod
        def full(shape, value, dtype, device):
            assert (dtype, device) == ("float32", "tpu")
            return Array([value] * shape[0])

    class Array:
        dtype, device = "float32", "tpu"

        def __init__(self, numbers):
            self.numbers, self.shape = numbers, (len(numbers),)

        def __array_namespace__(self):
            return Namespace

    layout = PackLayout.from_lengths([2, 1], pad_to_multiple_of=4)
    assert layout.concat([Array([7, 8]), Array([9])], pad_value=0) == [7, 8, 9, 0]
