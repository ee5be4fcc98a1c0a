"""A window buffer gives every segment in exactly one of its packs, or keeps the whole window."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packsched import InfeasibleWindowError, PackingError, UndecidedWindowError, WindowBuffer, plan_window
from packsched import buffers as buffer_module
from tests.packsched.test_window import cut_full_packs

CAP = 20
fitting = st.lists(st.integers(1, CAP), max_size=12)


def window(lens, micro_steps, **options):
    buffer = WindowBuffer(CAP, micro_steps, **options)
    for index, length in enumerate(lens):
        buffer.add(f"s{index}", length)
    return buffer


def contents(buffer):
    return list(buffer._segments), buffer.encoded_lens


@pytest.mark.parametrize("objective", ["dense", "balanced"])
@given(lens=fitting, micro_steps=st.integers(1, 12))
def test_every_segment_of_a_window_is_in_exactly_one_of_its_packs(objective, lens, micro_steps):
    buffer = window(lens, micro_steps, objective=objective)
    before = contents(buffer)
    try:
        packs = buffer.take_packs()
    except (InfeasibleWindowError, UndecidedWindowError):
        assert len(lens) > micro_steps  # one segment per pack always fits
        assert contents(buffer) == before
        assert buffer.plan is None
        return
    finally:
        buffer._check()
    assert len(packs) == micro_steps
    assert sorted(s for pack in packs for s in pack.segments) == sorted(before[0])
    assert all(pack.layout.total <= CAP for pack in packs)
    assert all(pack.segments == tuple(before[0][i] for i in pack.indices) for pack in packs)
    assert all(pack.layout.encoded_lens == tuple(lens[i] for i in pack.indices) for pack in packs)
    sizes = [len(pack.segments) for pack in packs]
    assert 0 not in sizes[: micro_steps - sizes.count(0)]
    assert len(buffer) == 0
    assert buffer.plan == plan_window(lens, CAP, micro_steps, objective=objective)


@pytest.mark.parametrize(
    ("lens", "cap", "micro_steps"),
    [
        ([1, 1, 4, 6, 6], 10, 2),
        ([3, 3, 2, 2, 2], 6, 2),
        ([5, 5, 4, 4, 3, 3, 3], 9, 3),
        ([7, 2], 9, 4),
        ([5, 4, 6, 3], 9, 3),
    ],
)
def test_windows_that_earlier_schedulers_rejected_are_placed(lens, cap, micro_steps):
    buffer = WindowBuffer(cap, micro_steps)
    for index, length in enumerate(lens):
        buffer.add(index, length)
    packs = buffer.take_packs()
    assert len(packs) == micro_steps
    assert sorted(index for pack in packs for index in pack.indices) == list(range(len(lens)))


def test_a_window_without_segments_gives_empty_packs():
    packs = window([], 3).take_packs()
    assert [(p.segments, p.indices, p.layout.total, p.fill) for p in packs] == [((), (), 0, 0.0)] * 3


def test_a_window_that_does_not_fit_stays_in_the_buffer():
    buffer = window([11, 11, 11], 2)
    with pytest.raises(InfeasibleWindowError):
        buffer.take_packs()
    assert contents(buffer) == (["s0", "s1", "s2"], (11, 11, 11))


def test_a_window_that_stays_undecided_stays_in_the_buffer(monkeypatch):
    buffer = window([11, 9], 2)

    def give_up(*_, **__):
        raise UndecidedWindowError(segments=2, tokens=20, packing_length=CAP, micro_steps=2, bound=1, searched=True)

    monkeypatch.setattr(buffer_module, "plan_window", give_up)
    with pytest.raises(UndecidedWindowError):
        buffer.take_packs()
    assert contents(buffer) == (["s0", "s1"], (11, 9))


@pytest.mark.parametrize("packs", [((0,), ()), ((0, 1), (1,)), ((0, 1),)])
def test_a_plan_that_loses_or_doubles_a_segment_or_pack_is_not_returned(monkeypatch, packs):
    """A bug in the planner must not reach training."""
    buffer = window([3, 4], 2)
    plan = plan_window([3, 4], CAP, 2)
    object.__setattr__(plan, "packs", packs)
    monkeypatch.setattr(buffer_module, "plan_window", lambda *_, **__: plan)
    with pytest.raises(AssertionError):
        buffer.take_packs()
    assert contents(buffer) == (["s0", "s1"], (3, 4))


@pytest.mark.parametrize("length", [21, 0, -1, 2.5, True, "5"])
def test_a_window_refuses_bad_lengths_and_stays_as_it_was(length):
    buffer = window([5], 2)
    with pytest.raises(PackingError, match=r"^segment 1 has encoded_len "):
        buffer.add("bad", length)
    assert contents(buffer) == (["s0"], (5,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"packing_length": -1}, r"^packing_length is -1; it must be at least 1\.$"),
        ({"micro_steps": 0}, r"^micro_steps is 0; it must be at least 1\.$"),
        ({"objective": "tight"}, r"tight"),
        ({"effort": 0}, r"^effort is 0; it must be a number above 0\.$"),
    ],
)
def test_a_window_buffer_with_bad_arguments_is_refused_when_it_is_made(arguments, message):
    with pytest.raises(PackingError, match=message):
        WindowBuffer(**{"packing_length": CAP, "micro_steps": 2, **arguments})


def test_a_window_buffer_can_be_filled_again():
    buffer = window([5], 1)
    buffer.take_packs()
    buffer.add("next", 6)
    assert [pack.segments for pack in buffer.take_packs()] == [("next",)]


def test_more_effort_plans_a_window_that_less_effort_leaves_undecided():
    lens = cut_full_packs(random.Random(37), 32, 4, 16384, even=True)
    for effort in (0.01, 1.0):
        buffer = WindowBuffer(16384, 32, effort=effort)
        for index, length in enumerate(lens):
            buffer.add(index, length)
        if effort < 1:
            with pytest.raises(UndecidedWindowError, match="A larger effort= searches longer"):
                buffer.take_packs()
        else:
            assert [pack.fill for pack in buffer.take_packs()] == [1.0] * 32


def test_a_window_shows_its_segments_and_prints_its_numbers():
    buffer = window([6, 5, 3], 3)
    assert buffer.segments == ("s0", "s1", "s2")
    assert repr(buffer) == "WindowBuffer(3 segments, 14 tokens, packing_length=20, micro_steps=3)"


def test_a_pack_has_a_length_iterates_and_prints_its_numbers():
    full, empty = window([6, 5, 3], 2).take_packs()
    assert (len(full), list(full)) == (3, ["s0", "s1", "s2"])
    assert (len(empty), list(empty)) == (0, [])
    assert repr(full) == "Pack(3 segments, 14 tokens, packing_length=20)"
