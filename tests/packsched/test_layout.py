"""A layout places every token once and restarts every segment; positions go there and back."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packsched import PackingError, PackLayout
from tests.packsched.layouts import lengths, multiples, some_lengths, token_table


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
