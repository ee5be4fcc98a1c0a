"""Error texts are part of the interface: the numbers first, then what to do."""

import pickle
import random
import re
from pathlib import Path

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
    plan_ranks,
    plan_window,
)
from packsched.arguments import checked_count, checked_lengths
from tests.packsched.test_window import cut_full_packs

WINDOW = {"segments": 3, "tokens": 18, "packing_length": 10, "micro_steps": 2, "bound": 3}
NUMBERS = {
    OversizedSegmentError: {"index": 3, "encoded_len": 5000, "packing_length": 4096},
    BufferOverflowError: {"segments": 8, "packing_buffer": 8, "encoded_len": 70},
    InfeasibleWindowError: {**WINDOW, "proof": "volume"},
    UndecidedWindowError: {**WINDOW, "searched": True},
}
KINDS = list(NUMBERS)
FOREIGN = re.compile(r"global_max_length|template|max_new_tokens|training\.|per_device|gradient_acc|micro-batch")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_packing_error_and_a_value_error(kind):
    assert issubclass(kind, PackingError)
    assert issubclass(kind, ValueError)


def test_a_missing_dependency_is_an_import_error_and_not_a_value_error():
    assert issubclass(MissingBinpackingError, ImportError)
    assert not issubclass(MissingBinpackingError, ValueError)


def numbers_of(error):
    return {name: getattr(error, name) for name in NUMBERS[type(error)]}


@pytest.mark.parametrize("kind", KINDS)
def test_errors_carry_their_numbers_through_pickling(kind):
    error = kind(**NUMBERS[kind])
    assert numbers_of(error) == NUMBERS[kind]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        copy = pickle.loads(pickle.dumps(error, protocol))
        assert type(copy) is kind
        assert str(copy) == str(error)
        assert numbers_of(copy) == NUMBERS[kind]


def test_the_other_errors_survive_pickling_as_well():
    error = pickle.loads(pickle.dumps(PackingError("3 of 4", index=3)))
    assert (str(error), error.index) == ("3 of 4", 3)
    missing = pickle.loads(pickle.dumps(MissingBinpackingError("not there", installed="1.5.2")))
    assert (str(missing), missing.name, missing.installed) == ("not there", "binpacking", "1.5.2")


@pytest.mark.parametrize("kind", KINDS)
def test_a_retold_error_keeps_its_kind_and_its_numbers(kind):
    error = kind(**NUMBERS[kind])
    retold = error.with_message(f"rank 3: {error}")
    assert type(retold) is kind
    assert str(retold) == f"rank 3: {error}"
    assert numbers_of(retold) == numbers_of(error) == NUMBERS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_an_error_is_in_its_message(kind):
    message = str(kind(**NUMBERS[kind]))
    missing = [value for value in NUMBERS[kind].values() if value is not True and str(value) not in message]
    assert missing == []


@pytest.mark.parametrize("kind", KINDS)
def test_errors_advise_in_the_terms_of_packsched_alone(kind):
    assert FOREIGN.search(str(kind(**NUMBERS[kind]))) is None
    assert FOREIGN.search("Raise training.packing_buffer") is not None


def test_an_oversized_segment_states_all_numbers_and_what_helps():
    assert str(OversizedSegmentError(**NUMBERS[OversizedSegmentError])) == (
        "segment 3 has encoded_len 5000, which is 904 more than packing_length 4096. "
        "Raise packing_length or make shorter segments; they are never split."
    )


def test_an_infeasible_window_tells_what_it_needs_and_what_it_has():
    with pytest.raises(InfeasibleWindowError) as caught:
        plan_window([6, 6, 6], 10, 2)
    assert numbers_of(caught.value) == {
        **WINDOW,
        "proof": "volume; all lengths are multiples of 6, so a pack holds at most 6 tokens",
    }


def test_an_undecided_window_says_whether_a_larger_effort_would_help():
    lens = cut_full_packs(random.Random(37), 32, 4, 16384, even=True)
    with pytest.raises(UndecidedWindowError, match="A larger effort= searches longer") as caught:
        plan_window(lens, 16384, 32, effort=0.01)
    error = caught.value
    assert (error.segments, error.tokens, error.packing_length) == (128, 32 * 16384, 16384)
    assert (error.micro_steps, error.bound, error.searched) == (32, 32, True)


def test_an_error_in_the_lengths_of_a_rank_names_the_rank():
    with pytest.raises(OversizedSegmentError, match=r"^rank 1: segment 2 has encoded_len 12") as caught:
        plan_ranks([[5], [5, 5, 12]], 10, 3)
    assert (caught.value.rank, caught.value.index, caught.value.encoded_len) == (1, 2, 12)


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
def test_a_length_that_is_not_a_positive_integer_is_refused_by_index(lens, message):
    with pytest.raises(PackingError, match=f"^{re.escape(message)}") as caught:
        checked_lengths(lens)
    assert f"segment {caught.value.index} " in message


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


def test_an_undecided_window_gives_its_numbers():
    error = UndecidedWindowError(segments=5, tokens=19, packing_length=10, micro_steps=2, bound=2, searched=False)
    assert str(error).startswith(
        "no plan found that puts 5 segments of 19 tokens into 2 packs of packing_length 10 (20 tokens), and no proof "
        "that there is none: at least 2 packs are needed. Windows this large are not searched;"
    )


def test_the_version_is_the_one_that_is_declared():
    declared = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert f'\nversion = "{packsched.__version__}"\n' in declared
