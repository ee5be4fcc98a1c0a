"""A layout places every token once, restarts every segment, and undoes what it did."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packsched import PackingError, PackLayout

ROOT = Path(__file__).resolve().parents[2]
lengths = st.lists(st.integers(1, 12), max_size=8)
some_lengths = st.lists(st.integers(1, 12), min_size=1, max_size=8)
multiples = st.none() | st.integers(1, 16)


def token_table(lens, padding):
    """Brute force: (span, position within it) of each packed token; padding is the last span."""
    spans = [*lens, padding] if padding else lens
    return [(span, position) for span, length in enumerate(spans) for position in range(length)]


# --- Fields ---


@given(lengths, multiples)
def test_every_field_agrees_with_a_table_of_tokens(lens, multiple):
    layout = PackLayout.from_lengths(lens, pad_to_multiple_of=multiple)
    table = token_table(lens, layout.padding)
    assert layout.num_segments == len(lens)
    assert layout.tokens == sum(lens)
    assert layout.total == len(table)
    assert layout.segment_ids.tolist() == [span for span, _ in table]
    assert layout.position_ids.tolist() == [position for _, position in table]
    assert layout.offsets == tuple(table.index((segment, 0)) for segment in range(len(lens)))
    starts = [index for index, (_, position) in enumerate(table) if position == 0]
    assert layout.cu_seqlens.tolist() == ([*starts, len(table)] if table else [0])
    assert layout.max_seqlen == max(np.diff(layout.cu_seqlens), default=0)


@given(some_lengths, st.integers(1, 16))
def test_padding_is_a_span_of_its_own_and_the_smallest_that_does(lens, multiple):
    layout = PackLayout.from_lengths(lens, pad_to_multiple_of=multiple)
    assert layout.total % multiple == 0
    assert 0 <= layout.padding < multiple
    assert np.diff(layout.cu_seqlens)[: len(lens)].tolist() == lens
    assert (layout.segment_ids == len(lens)).sum() == layout.padding


def test_types_and_shapes_are_those_that_varlen_kernels_take():
    layout = PackLayout.from_lengths(np.array([3, 2], dtype=np.uint16), pad_to_multiple_of=np.int64(4))
    assert layout.cu_seqlens.dtype == np.int32
    assert layout.segment_ids.dtype == np.int32
    assert layout.position_ids.dtype == np.int64
    assert type(layout.max_seqlen) is int
    assert type(layout.total) is int
    assert all(type(n) is int for n in (*layout.encoded_lens, *layout.offsets))


def test_an_empty_pack_is_legal_and_stays_empty_under_padding():
    layout = PackLayout.from_lengths([], pad_to_multiple_of=8)
    assert (layout.total, layout.max_seqlen, layout.offsets) == (0, 0, ())
    assert layout.cu_seqlens.tolist() == [0]
    assert layout.position_ids.shape == layout.segment_ids.shape == (0,)
    assert layout.position_ids.dtype == np.int64
    assert layout.split(np.zeros((0, 4))) == []
    assert layout.locate([]) == ([], [])


def test_arrays_belong_to_the_caller_so_writing_into_one_changes_no_layout():
    layout = PackLayout.from_lengths([3, 2])
    layout.position_ids[:] = -1
    layout.cu_seqlens[:] = -1
    assert layout.position_ids.tolist() == [0, 1, 2, 0, 1]
    assert layout.cu_seqlens.tolist() == [0, 3, 5]


def test_layouts_are_values():
    layout = PackLayout.from_lengths([3, 2])
    assert layout == PackLayout.from_lengths(np.array([3, 2]))
    assert hash(layout) == hash(PackLayout.from_lengths([3, 2]))
    assert layout != PackLayout.from_lengths([3, 2], pad_to_multiple_of=4)
    assert pickle.loads(pickle.dumps(layout)) == layout
    with pytest.raises(AttributeError):
        layout.padding = 3


@pytest.mark.parametrize(
    ("lens", "multiple", "message"),
    [
        ([3, 0], None, r"^segment 1 has encoded_len 0;"),
        ([3.0], None, r"^segment 0 has encoded_len 3\.0 of type float;"),
        ([3], 0, r"^pad_to_multiple_of is 0; it must be at least 1\.$"),
        ([3], 1.5, r"^pad_to_multiple_of is 1\.5 of type float; it must be an integer\.$"),
    ],
)
def test_bad_lengths_and_multiples_are_refused(lens, multiple, message):
    with pytest.raises(PackingError, match=message):
        PackLayout.from_lengths(lens, pad_to_multiple_of=multiple)


@given(lengths, multiples, st.integers(1, 8))
def test_every_field_is_right_when_each_segment_is_padded(lens, multiple, segment_multiple):
    layout = PackLayout.from_lengths(lens, pad_to_multiple_of=multiple, segment_multiple=segment_multiple)
    table = []  # (owner, position) of each packed token, by brute force
    for segment, length in enumerate(lens):
        table += [(segment, position) for position in range(length)]
        table += [(len(lens), position) for position in range(-length % segment_multiple)]
    table += [(len(lens), position) for position in range(layout.padding)]
    assert layout.total == len(table)
    assert layout.total % (multiple or 1) == 0
    assert layout.tokens == sum(lens)
    assert layout.segment_ids.tolist() == [owner for owner, _ in table]
    assert layout.position_ids.tolist() == [position for _, position in table]
    assert layout.offsets == tuple(table.index((segment, 0)) for segment in range(len(lens)))
    assert all(offset % segment_multiple == 0 for offset in layout.offsets)
    tail = [layout.padding] if layout.padding else []
    assert np.diff(layout.cu_seqlens).tolist() == lens + tail
    padded = [length + -length % segment_multiple for length in lens] + tail
    assert np.diff(layout.cu_seqlens_padded).tolist() == padded
    assert layout.cu_seqlens_padded.dtype == np.int32
    assert layout.max_seqlen == max(padded, default=0)
    for packed, (owner, position) in enumerate(table):
        if owner < len(lens):
            assert layout.remap(owner, position) == packed
            assert layout.locate(packed) == (owner, position)
        else:
            with pytest.raises(PackingError, match=f"position {packed} is outside the pack's {len(lens)} segments"):
                layout.locate(packed)


def test_without_padded_segments_both_lists_of_boundaries_are_equal():
    layout = PackLayout.from_lengths([3, 2], pad_to_multiple_of=8)
    assert layout.cu_seqlens.tolist() == layout.cu_seqlens_padded.tolist() == [0, 3, 5, 8]


@pytest.mark.parametrize(
    ("kwargs", "printed"),
    [
        ({}, "PackLayout(2 segments, 5 tokens)"),
        ({"segment_multiple": 4, "pad_to_multiple_of": 16}, "PackLayout(2 segments, 5 tokens, 11 of padding)"),
    ],
)
def test_a_layout_prints_its_numbers(kwargs, printed):
    assert repr(PackLayout.from_lengths([3, 2], **kwargs)) == printed


# --- remap and locate ---


@given(some_lengths, multiples)
def test_locate_undoes_remap_for_every_token(lens, multiple):
    layout = PackLayout.from_lengths(lens, pad_to_multiple_of=multiple)
    for packed, (segment, position) in enumerate(token_table(lens, 0)):
        assert layout.remap(segment, position) == packed
        assert layout.locate(packed) == (segment, position)


@given(some_lengths, st.data())
def test_a_remapped_position_points_at_the_same_token(lens, data):
    layout = PackLayout.from_lengths(lens)
    arrays = [np.arange(length) + 100 * segment for segment, length in enumerate(lens)]
    packed = layout.concat(arrays)
    segment = data.draw(st.integers(0, len(lens) - 1))
    positions = np.array(data.draw(st.lists(st.integers(0, lens[segment] - 1))), dtype=np.int64)
    assert packed[layout.remap(segment, positions)].tolist() == arrays[segment][positions].tolist()


def test_what_goes_into_remap_comes_out_in_kind():
    layout = PackLayout.from_lengths([3, 2])
    assert layout.remap(1, 0) == 3
    assert type(layout.remap(1, 0)) is int
    assert layout.remap(1, [1, 0]) == [4, 3]
    assert layout.remap(1, range(2)) == [3, 4]
    assert layout.remap(1, []) == []
    grid = layout.remap(np.int64(1), np.array([[0, 1]], dtype=np.int32))
    assert isinstance(grid, np.ndarray)
    assert grid.tolist() == [[3, 4]]
    assert layout.locate(np.array([[0, 4]]))[0].tolist() == [[0, 1]]
    assert layout.locate([0, 4]) == ([0, 1], [0, 1])
    assert layout.locate(4) == (1, 1)


@pytest.mark.parametrize(
    ("segment", "positions", "message"),
    [
        (1, 2, r"^position 2 is outside segment 1, whose encoded_len is 2 tokens\.$"),
        (0, [0, -1], r"^position -1 is outside segment 0, whose encoded_len is 3 tokens\.$"),
        (0, np.array([[0], [9]]), r"^position 9 is outside segment 0, whose encoded_len is 3 tokens\.$"),
        (2, 0, r"^segment is 2, but the pack has 2 segments\.$"),
        (-1, 0, r"^segment is -1; it must be at least 0\.$"),
        (0, [0.0], r"^positions have dtype float64; they must be integers\.$"),
        (
            0,
            np.array([True, False, True]),
            r"^positions have dtype bool; they must be integers; np\.flatnonzero turns a mask into positions",
        ),
    ],
)
def test_remap_refuses_what_is_not_inside_the_segment(segment, positions, message):
    with pytest.raises(PackingError, match=message):
        PackLayout.from_lengths([3, 2], pad_to_multiple_of=8).remap(segment, positions)


@pytest.mark.parametrize("position", [5, 7, 8, -1])
def test_locate_names_the_first_position_in_padding_or_outside(position):
    layout = PackLayout.from_lengths([3, 2], pad_to_multiple_of=8)
    message = rf"^position {position} is outside the pack's 2 segments, which without padding hold 5 tokens\.$"
    with pytest.raises(PackingError, match=message):
        layout.locate([0, position, 6])


def test_locate_on_an_empty_pack_refuses_every_position():
    with pytest.raises(PackingError, match="hold 0 tokens"):
        PackLayout.from_lengths([]).locate(0)


def test_positions_of_another_framework_are_only_added_to():
    """A device tensor must not be read: that would make the host wait once per segment."""

    class DeviceArray:
        def __add__(self, offset):
            return ("added", offset)

        def __array__(self, *_):
            raise AssertionError("the values were read")

        __bool__ = __iter__ = __len__ = __lt__ = __getitem__ = __array__

    assert PackLayout.from_lengths([3, 2]).remap(1, DeviceArray()) == ("added", 3)


# --- concat and split ---


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


# --- torch, without ever importing it from packsched ---


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
