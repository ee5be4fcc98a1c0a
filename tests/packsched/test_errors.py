"""Error texts are part of the interface: the numbers first, then what to do."""

import pickle
import re

import numpy as np
import pytest

import packsched
from packsched import (
    BufferOverflowError,
    InfeasibleWindowError,
    MissingBinpackingError,
    OversizedSegmentError,
    PackingError,
    UndecidedWindowError,
)
from packsched.arguments import checked_count, checked_lengths

KINDS = [OversizedSegmentError, BufferOverflowError, InfeasibleWindowError, UndecidedWindowError]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_packing_error_and_a_value_error(kind):
    assert issubclass(kind, PackingError)
    assert issubclass(kind, ValueError)


def test_a_missing_dependency_is_an_import_error_and_not_a_value_error():
    assert issubclass(MissingBinpackingError, ImportError)
    assert not issubclass(MissingBinpackingError, ValueError)


@pytest.mark.parametrize("kind", [PackingError, *KINDS, MissingBinpackingError])
def test_errors_survive_pickling_between_processes(kind):
    copy = pickle.loads(pickle.dumps(kind("3 of 4")))
    assert type(copy) is kind
    assert str(copy) == "3 of 4"


def test_oversize_names_the_numbers_and_every_mitigation():
    error = OversizedSegmentError.for_segment(3, 5000, 4096)
    assert str(error) == (
        "segment 3 has encoded_len 5000, which is 904 more than packing_length 4096. "
        "Raise global_max_length (or template.max_length), lower max_new_tokens, or disable training.packing."
    )


@pytest.mark.parametrize(
    ("lens", "message"),
    [
        (
            [4, 0],
            "segment 1 has encoded_len 0; a segment has at least 1 token. "
            "Leave out samples that produced nothing instead of passing them on.",
        ),
        ([4, 3, -2], "segment 2 has encoded_len -2; a segment has at least 1 token."),
        ([2.0], "segment 0 has encoded_len 2.0 of type float; lengths are integers (tokens)."),
        (["7"], "segment 0 has encoded_len '7' of type str; lengths are integers (tokens)."),
        ([1, None], "segment 1 has encoded_len None of type NoneType; lengths are integers (tokens)."),
        ([True], "segment 0 has encoded_len True of type bool; lengths are integers (tokens)."),
        (np.array([True]), "segment 0 has encoded_len "),
        (np.array([1.5]), "segment 0 has encoded_len "),
        (np.ones((2, 2), dtype=int), "segment 0 has encoded_len array([1, 1]) of type ndarray;"),
    ],
)
def test_a_length_that_is_no_positive_integer_is_refused_by_index_and_value(lens, message):
    with pytest.raises(PackingError, match=f"^{re.escape(message)}"):
        checked_lengths(lens)


@pytest.mark.parametrize(
    "lens",
    [[5, 3], (5, 3), np.array([5, 3]), np.array([5, 3], dtype=np.uint8), iter([5, 3]), [np.int32(5), 3]],
)
def test_any_integer_sequence_gives_plain_integers(lens):
    found = checked_lengths(lens)
    assert found == [5, 3]
    assert all(type(length) is int for length in found)


def test_tensors_are_lengths_unless_they_are_masks():
    torch = pytest.importorskip("torch")
    assert checked_lengths(torch.tensor([5, 3])) == [5, 3]
    with pytest.raises(PackingError, match=r"^segment 0 has encoded_len tensor\(True\)"):
        checked_lengths(torch.tensor([True, True]))


@pytest.mark.parametrize("lens", [None, 5])
def test_what_is_no_sequence_is_refused(lens):
    with pytest.raises(PackingError, match=r"give a sequence of integers"):
        checked_lengths(lens)


def test_a_count_names_its_argument():
    with pytest.raises(PackingError, match=r"^packing_length is 0; it must be at least 1\.$"):
        checked_count("packing_length", 0)
    with pytest.raises(PackingError, match=r"^micro_steps is 2\.5 of type float; it must be an integer\.$"):
        checked_count("micro_steps", 2.5)
    assert checked_count("micro_steps", np.int64(2)) == 2


def test_the_public_names_are_there():
    assert all(hasattr(packsched, name) for name in packsched.__all__)
