"""A trace is cut into the windows and micro-batches that a trainer would pull, and every segment is in one of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packsched import PackingError
from packsched.steps import Step, cut_steps


def test_each_rank_is_cut_by_itself_and_the_last_window_has_fewer_packs():
    steps = cut_steps([1, 2, 3, 4, 5, 6, 7], micro_steps=2, batch_size=1, ranks=[0, 0, 5, 0, 5, 0, 0])
    assert steps == [
        Step((((1,), (2,)), ((3,), (5,))), 2),
        Step((((4,), (6,)), ((),)), 2),
        Step((((7,),), ((),)), 1),
    ]
    assert steps[1].encoded_lens == [[4, 6], []]


def test_windows_keep_the_order_in_which_they_begin():
    steps = cut_steps([1, 2, 3, 4, 5], micro_steps=2, windows=[9, 9, 4, 9, 4])
    assert steps == [Step((((1, 2), (4,)),), 2), Step((((3,), (5,)),), 2)]


def test_a_rank_without_segments_in_a_window_has_an_empty_one():
    steps = cut_steps([1, 2, 3], micro_steps=2, windows=[0, 0, 1], ranks=[0, 1, 1])
    assert [step.encoded_lens for step in steps] == [[[1], [2]], [[], [3]]]


@given(
    lens=st.lists(st.integers(1, 9), min_size=1, max_size=40),
    micro_steps=st.integers(1, 5),
    batch_size=st.one_of(st.none(), st.integers(1, 6)),
    ranks=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_every_segment_is_in_one_step_of_its_rank_in_order(lens, micro_steps, batch_size, ranks, seed):
    rng = np.random.default_rng(seed)
    rank_of = rng.integers(ranks, size=len(lens))
    windows = None if batch_size else np.sort(rng.integers(4, size=len(lens)))
    steps = cut_steps(lens, micro_steps=micro_steps, batch_size=batch_size, windows=windows, ranks=rank_of)
    held = [[], [], []]
    for step in steps:
        assert step.micro_steps <= micro_steps
        assert all(len(batches) <= step.micro_steps for batches in step.micro_batches)
        for rank, own in zip(np.unique(rank_of), step.encoded_lens, strict=True):
            held[rank] += own
    assert held == [[length for length, of in zip(lens, rank_of, strict=True) if of == rank] for rank in range(3)]


@pytest.mark.parametrize(
    ("lens", "arguments", "says"),
    [
        ([], {"batch_size": 1}, "there are no lengths"),
        ([5], {}, "either batch_size or the windows"),
        ([5], {"batch_size": 1, "windows": [0]}, "either batch_size or the windows"),
        ([5], {"batch_size": 0}, "batch_size is 0"),
        ([5, 6], {"batch_size": 1, "ranks": [0]}, "ranks has 1 entries for 2 segments"),
        ([5, 6], {"windows": [0]}, "windows has 1 entries for 2 segments"),
    ],
)
def test_bad_arguments_are_refused(lens, arguments, says):
    with pytest.raises(PackingError, match=says):
        cut_steps(lens, micro_steps=2, **arguments)
