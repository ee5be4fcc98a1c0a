"""A carry buffer keeps every segment until its pack is popped, and a refused call changes nothing."""

import copy
import logging
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from packsched import (
    BufferOverflowError,
    CarryBuffer,
    MissingBinpackingError,
    OversizedSegmentError,
    PackingError,
    PackLayout,
    select,
)
from packsched import buffers as buffer_module

CAP = 20
POLICIES = ["fifo", "binpacking", "optimal"]
fitting = st.lists(st.integers(1, CAP), max_size=12)


def carry(lens, **options):
    buffer = CarryBuffer(CAP, **{"packing_buffer": 64, "min_fill_ratio": 0.0, **options})
    for index, length in enumerate(lens):
        buffer.add(f"s{index}", length)
    return buffer


def contents(buffer):
    return list(buffer._segments), buffer.encoded_lens


class CarryBufferActions(RuleBasedStateMachine):
    """Random actions against a plain list of (segment, length) that cannot be wrong."""

    @initialize(cap=st.integers(1, CAP), size=st.integers(1, 8), policy=st.sampled_from(POLICIES))
    def start(self, cap, size, policy):
        self.buffer = CarryBuffer(cap, packing_buffer=size, policy=policy, min_fill_ratio=0)
        self.model = []
        self.made = 0

    @rule(share=st.floats(0, 1))
    def add(self, share):
        length = max(1, round(share * self.buffer.packing_length))
        self.made += 1
        if len(self.model) == self.buffer.packing_buffer:
            with pytest.raises(BufferOverflowError):
                self.buffer.add(self.made, length)
        else:
            self.buffer.add(self.made, length)
            self.model.append((self.made, length))

    @rule(excess=st.integers(1, 5))
    def add_oversized(self, excess):
        with pytest.raises(OversizedSegmentError):
            self.buffer.add("too long", self.buffer.packing_length + excess)

    @rule(length=st.sampled_from([0, -3, 1.5, None, True]))
    def add_nonsense(self, length):
        with pytest.raises(PackingError):
            self.buffer.add("nonsense", length)

    @precondition(lambda self: not self.model)
    @rule()
    def pop_empty(self):
        with pytest.raises(PackingError):
            self.buffer.pop_pack()

    @precondition(lambda self: self.model)
    @rule()
    def pop(self):
        lens = [length for _, length in self.model]
        pack = self.buffer.pop_pack()
        assert list(pack.indices) == select(lens, self.buffer.packing_length, policy=self.buffer.policy)
        assert pack.indices[0] == 0
        assert list(pack.segments) == [self.model[index][0] for index in pack.indices]
        assert pack.layout == PackLayout.from_lengths([lens[index] for index in pack.indices])
        assert pack.layout.total <= self.buffer.packing_length
        self.model = [item for index, item in enumerate(self.model) if index not in pack.indices]

    @rule()
    def checkpoint(self):
        old = self.buffer
        self.buffer = CarryBuffer(
            old.packing_length, packing_buffer=old.packing_buffer, policy=old.policy, min_fill_ratio=0
        )
        self.buffer.load_state_dict(old.state_dict())

    @precondition(lambda self: self.buffer.packing_length > 1)
    @rule()
    def load_what_does_not_fit(self):
        too_long = {"packing_length": 99, "encoded_lens": [1, 99], "segments": ["a", "b"]}
        with pytest.raises(OversizedSegmentError):
            self.buffer.load_state_dict(too_long)

    @invariant()
    def agrees_with_the_model(self):
        if hasattr(self, "model"):
            self.buffer._check()
            assert len(self.buffer) == len(self.model)
            assert contents(self.buffer) == ([s for s, _ in self.model], tuple(n for _, n in self.model))


CarryBufferActions.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestCarryBufferUnderRandomActions = CarryBufferActions.TestCase


@pytest.mark.parametrize("policy", POLICIES)
@given(lens=fitting)
def test_draining_a_carry_buffer_gives_every_segment_exactly_once(policy, lens):
    buffer = carry(lens, policy=policy)
    taken = []
    while len(buffer):
        oldest = contents(buffer)[0][0]
        pack = buffer.pop_pack()
        assert pack.segments[0] == oldest
        assert 0 < pack.fill <= 1
        taken.extend(pack.segments)
    assert sorted(taken) == sorted(f"s{index}" for index in range(len(lens)))


@given(fitting, st.integers(0, 3))
def test_no_segment_starves_however_many_newcomers_arrive(lens, newcomers):
    buffer = carry(lens, packing_buffer=999)
    for pops in range(len(lens)):
        waiting = [segment for segment in contents(buffer)[0] if segment != "newcomer"]
        assert len(waiting) <= len(lens) - pops
        if waiting:
            buffer.pop_pack()
        for _ in range(newcomers):
            buffer.add("newcomer", CAP // 2)
    assert set(contents(buffer)[0]) <= {"newcomer"}


def test_scenario_oversized_segment_fails_fast_at_insertion():
    buffer = carry([5])
    before = contents(buffer)
    with pytest.raises(OversizedSegmentError) as caught:
        buffer.add("too long", 21)
    assert str(caught.value) == (
        "segment 1 has encoded_len 21, which is 1 more than packing_length 20. "
        "Raise packing_length or make shorter segments; they are never split."
    )
    assert contents(buffer) == before


def test_a_refused_overflow_names_numbers_and_advice_and_changes_nothing():
    buffer = carry([5, 6], packing_buffer=2)
    before = contents(buffer)
    with pytest.raises(BufferOverflowError) as caught:
        buffer.add("third", 7)
    assert str(caught.value) == (
        "2 segments wait and packing_buffer is 2, so a segment with encoded_len 7 was refused. "
        "Raise packing_buffer, add fewer segments for each pack that is popped, or raise packing_length so that a "
        "pack takes more of them."
    )
    assert (caught.value.segments, caught.value.packing_buffer, caught.value.encoded_len) == (2, 2, 7)
    assert contents(buffer) == before


def test_an_empty_buffer_has_no_pack():
    with pytest.raises(PackingError, match=r"^0 segments wait, so no pack can be popped\. Ask len\(buffer\)"):
        carry([]).pop_pack()


def test_indices_are_places_in_the_buffer_at_the_time_of_the_pop():
    buffer = carry([12, 12, 8, 8])
    assert (buffer.pop_pack().indices, buffer.pop_pack().indices) == ((0, 2), (0, 1))


def test_segments_come_back_as_the_objects_they_were():
    buffer, segment = carry([]), object()
    buffer.add(segment, np.int64(3))
    pack = buffer.pop_pack()
    assert pack.segments[0] is segment
    assert pack.fill == 3 / CAP


def test_a_pop_that_fails_leaves_the_buffer_as_it_was(monkeypatch):
    buffer = carry([5, 6])
    before = contents(buffer)
    monkeypatch.setitem(sys.modules, "binpacking", None)
    with pytest.raises(MissingBinpackingError):
        buffer.pop_pack()
    assert contents(buffer) == before


def test_a_pack_over_the_cap_is_never_handed_out(monkeypatch):
    monkeypatch.setattr(buffer_module, "select", lambda lens, cap, policy: list(range(len(lens))))
    buffer = carry([15, 15])
    with pytest.raises(AssertionError):
        buffer.pop_pack()
    assert contents(buffer) == (["s0", "s1"], (15, 15))


def test_scenario_missing_binpacking_fails_fast_before_any_rollout(monkeypatch):
    monkeypatch.setitem(sys.modules, "binpacking", None)
    with pytest.raises(MissingBinpackingError, match=r"pip install 'binpacking.*policy 'fifo'"):
        CarryBuffer(CAP, packing_buffer=4)
    CarryBuffer(CAP, packing_buffer=4, policy="fifo")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"packing_length": 0}, r"^packing_length is 0; it must be at least 1\.$"),
        ({"packing_buffer": 0}, r"^packing_buffer is 0; it must be at least 1\.$"),
        ({"policy": "best"}, r"^unknown policy 'best'; choose one of 'fifo', 'binpacking', 'optimal'\.$"),
        ({"min_fill_ratio": 65}, r"^min_fill_ratio is 65; it is a share of a pack, from 0 to 1\.$"),
        ({"min_fill_ratio": float("nan")}, r"^min_fill_ratio is nan; it is a share of a pack"),
    ],
)
def test_a_carry_buffer_with_bad_arguments_is_refused(arguments, message):
    with pytest.raises(PackingError, match=message):
        CarryBuffer(**{"packing_length": CAP, "packing_buffer": 4, **arguments})


# --- The underfill warning ---


def test_an_underfilled_pack_is_logged_with_its_numbers_and_still_popped(caplog):
    buffer = carry([4, 6, 15], min_fill_ratio=0.65)
    pack = buffer.pop_pack()
    assert (pack.fill, len(buffer)) == (0.95, 1)
    assert caplog.messages == []
    carried = carry([4, 6], min_fill_ratio=0.65)
    assert carried.pop_pack().fill == 0.5
    assert caplog.messages == [
        "post-rollout packing underfilled: 10 of 20 tokens (fill 0.500 < min_fill_ratio 0.650) in 2 "
        "segments, 0 left in the buffer. Make more segments per micro-step or pack over the window."
    ]
    assert [(r.levelno, r.name) for r in caplog.records] == [(logging.WARNING, "packsched.buffers")]


def test_a_pack_exactly_at_the_threshold_is_not_underfilled(caplog):
    carry([13], min_fill_ratio=0.65).pop_pack()
    assert caplog.messages == []


# --- Checkpoints ---


@given(fitting, st.integers(0, 3))
def test_a_restored_buffer_goes_on_as_the_old_one_would_have(lens, pops):
    buffer = carry(lens)
    for _ in range(min(pops, len(lens))):
        if len(buffer):
            buffer.pop_pack()
    restored = carry([7, 7])
    restored.load_state_dict(copy.deepcopy(buffer.state_dict()))
    while len(buffer):
        assert restored.pop_pack().segments == buffer.pop_pack().segments
    assert len(restored) == 0


def test_a_state_is_a_snapshot():
    buffer = carry([5, 6])
    state = buffer.state_dict()
    buffer.add("later", 1)
    buffer.pop_pack()
    assert state == {"packing_length": CAP, "encoded_lens": [5, 6], "segments": ["s0", "s1"]}
    other = carry([])
    other.load_state_dict(state)
    other.add("later", 1)
    assert state["segments"] == ["s0", "s1"]


def test_a_larger_cap_may_take_over_the_segments_of_a_smaller_one():
    larger = CarryBuffer(CAP + 5, packing_buffer=64)
    larger.load_state_dict(carry([20, 3]).state_dict())
    assert larger.encoded_lens == (20, 3)


STATE = {"packing_length": 30, "encoded_lens": [4, 5], "segments": ["a", "b"]}


@pytest.mark.parametrize(
    ("state", "kind", "message"),
    [
        (
            {**STATE, "encoded_lens": [4, 27]},
            OversizedSegmentError,
            r"^the state was saved with packing_length 30, and its segment 1 has encoded_len 27, which is "
            r"7 more than packing_length 20 now\. Raise packing_length back, "
            r"or resume from a checkpoint whose buffer is empty\.$",
        ),
        (
            {**STATE, "encoded_lens": [1, 1, 1], "segments": ["a", "b", "c"]},
            BufferOverflowError,
            r"^the state holds 3 segments and packing_buffer is 2\. "
            r"Raise packing_buffer to at least 3\.$",
        ),
        ({**STATE, "segments": ["a"]}, PackingError, r"^the state has 1 segments but 2 encoded_lens\.$"),
        ({**STATE, "encoded_lens": [4, 0]}, PackingError, r"^segment 1 has encoded_len 0;"),
        (
            {"packing_length": 30},
            PackingError,
            r"^the state has the keys \['packing_length'\] instead of \['encoded_lens', "
            r"'packing_length', 'segments'\]; pass what CarryBuffer\.state_dict returned\.$",
        ),
    ],
)
def test_a_refused_state_changes_nothing(state, kind, message):
    buffer = carry([9], packing_buffer=2)
    before = contents(buffer)
    with pytest.raises(kind, match=message):
        buffer.load_state_dict(state)
    assert contents(buffer) == before


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("packing_length", None, "the state's packing_length is None"),
        ("packing_length", True, "the state's packing_length is True"),
        ("encoded_lens", None, "the lengths are None"),
        ("encoded_lens", [3.0], "encoded_len 3.0"),
        ("segments", None, "the state's segments are None"),
    ],
)
def test_a_state_of_other_types_is_refused_and_changes_nothing(key, value, message):
    buffer = CarryBuffer(10, packing_buffer=4, policy="fifo")
    buffer.add("x", 3)
    with pytest.raises(PackingError, match=message):
        buffer.load_state_dict({**buffer.state_dict(), key: value})
    assert buffer.encoded_lens == (3,)


def test_a_buffer_shows_its_segments_and_prints_its_numbers():
    buffer = carry([6, 5], policy="fifo")
    assert buffer.segments == ("s0", "s1")
    assert repr(buffer) == ("CarryBuffer(2 segments, 11 tokens, packing_length=20, packing_buffer=64, policy='fifo')")
