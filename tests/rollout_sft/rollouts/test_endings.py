"""Where a response ends early: the rule against its definition, read at once or while the response grows."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_sft import Rollout
from rollout_sft.rollouts.check_answers import AnswerLimits, checked
from rollout_sft.rollouts.endings import (
    LONGEST_PERIOD,
    REPETITIONS,
    SHORTEST_LOOP,
    Endings,
    ended_counters,
    make_endings,
)

KEEP, OVER = 7, 9


class Reader:
    """Keeps everything up to the last `KEEP`; nothing can follow `OVER`."""

    def __init__(self):
        self.kept, self.over, self._read = 0, False, 0

    def read(self, token_id):
        self._read += 1
        self.kept = self._read if token_id == KEEP else self.kept
        self.over = self.over or token_id == OVER


class Builder:
    def response_reader(self):
        return Reader()


LOOPING, CLOSED = Endings(Builder(), looping=True), Endings(Builder(), looping=False)


def by_definition(ids):
    """The first length at which nothing can follow, or the last tokens repeat and hold nothing that is kept."""
    kept = 0
    for n, token in enumerate(ids, 1):
        kept = n if token == KEEP else kept
        if token == OVER:
            return n
        for period in range(1, LONGEST_PERIOD + 1):
            loop = max(REPETITIONS * period, SHORTEST_LOOP)
            if kept <= n - loop and ids[n - loop : n - period] == ids[n - loop + period : n]:
                return n
    return None


@st.composite
def responses(draw):
    """Single tokens, and loops of all periods; now and then a token that is kept, and one that nothing can follow."""
    ids = []
    for _ in range(draw(st.integers(1, 4))):
        period = draw(st.one_of(st.integers(1, 6), st.integers(25, 140)))
        body = draw(st.lists(st.sampled_from([1, 2, 3, 4, 5, 6]), min_size=period, max_size=period))
        if draw(st.integers(0, 3)) == 0:
            body[draw(st.integers(0, period - 1))] = KEEP
        times = draw(st.one_of(st.just(1), st.integers(2, 4), st.integers(SHORTEST_LOOP // period, 600 // period)))
        ids += (body * max(1, times))[: draw(st.integers(1, 700))]
    if draw(st.booleans()):
        ids.insert(draw(st.integers(0, len(ids))), OVER)
    return ids[:900]


@settings(max_examples=60, deadline=None)
@given(responses())
def test_a_response_ends_where_the_definition_says(ids):
    assert LOOPING.ends_at(ids) == by_definition(ids)
    assert CLOSED.ends_at(ids) == (ids.index(OVER) + 1 if OVER in ids else None)


@settings(max_examples=60, deadline=None)
@given(responses(), st.lists(st.integers(1, 200), min_size=1, max_size=30), st.sampled_from([LOOPING, CLOSED]))
def test_watching_a_growing_response_ends_it_at_the_same_token(ids, steps, endings):
    end, watch, seen = endings.ends_at(ids), endings.watch(), 0
    for step in steps:
        seen = min(len(ids), seen + step)
        assert watch(ids[:seen]) == (end if end is not None and seen >= end else None)
    assert watch(ids) == end


@settings(max_examples=60, deadline=None)
@given(responses(), responses(), st.sampled_from([LOOPING, CLOSED]))
def test_no_continuation_changes_where_a_response_ends(ids, more, endings):
    end = endings.ends_at(ids)
    if end is None:
        assert endings.ends_at(ids + more) in (None, *range(len(ids) + 1, len(ids + more) + 1))
    else:
        assert endings.ends_at(ids + more) == endings.ends_at(ids[:end]) == end
        assert endings.ends_at(ids[: end - 1]) is None


@pytest.mark.parametrize("period", [1, 2, 31, 32, 33, 100, LONGEST_PERIOD])
def test_a_loop_ends_with_its_fourth_repetition_and_after_128_tokens(period):
    loop = list(range(100, 100 + period)) * 200
    assert LOOPING.ends_at([1, 2, 3, *loop]) == 3 + max(4 * period, 128)


def test_a_loop_of_a_longer_period_is_not_seen():
    assert LOOPING.ends_at(list(range(100, 100 + LONGEST_PERIOD + 1)) * 20) is None


@pytest.mark.parametrize("period", [1, 5, 40, 100])
def test_a_loop_that_completes_something_each_time_goes_on(period):
    body = [KEEP, *range(100, 99 + period)]
    assert LOOPING.ends_at(body * 40) is None


def test_what_was_kept_before_the_loop_does_not_keep_it_alive():
    assert LOOPING.ends_at([1, KEEP, *[5] * 500]) == 2 + SHORTEST_LOOP
    # The token of the loop that is kept is not part of the repetitions that end it.
    assert LOOPING.ends_at([*[5] * 60, KEEP, *[5] * 500]) == 61 + SHORTEST_LOOP


@pytest.mark.parametrize("ids", [[5, 6] * 63, [5] * 127, list(range(100, 140)) * 3])
def test_short_stretches_and_three_repetitions_go_on(ids):
    assert LOOPING.ends_at(ids) is None


def test_a_cut_response_is_a_truncated_one_and_others_are_left_alone():
    whole = Rollout(response_ids=[1, OVER, 3, 4], truncated=False, origin="there")
    cut = CLOSED.cut(whole)
    assert cut == Rollout(response_ids=[1, OVER], truncated=True, ended=True)
    assert cut.origin == "there"
    good = Rollout(response_ids=[1, 2], truncated=False)
    assert CLOSED.cut(good) is good
    assert CLOSED.cut(cut) == cut, "a cut response ends where it was cut"


def test_what_is_saved_is_counted_up_to_the_limit_per_response():
    rollouts = [CLOSED.cut(Rollout(response_ids=ids, truncated=True)) for ids in ([1, OVER, 3], [1, 2], [1, 2])]
    assert ended_counters(rollouts, 10) == {"rollout/ended_early": (1, 3), "rollout/tokens_saved": (8, 3)}


def test_the_answers_of_any_backend_are_cut():
    limits = AnswerLimits(vocab_size=100, max_new_tokens=10, end_ids=frozenset([2]), endings=CLOSED)
    answers = [Rollout(response_ids=[5, OVER, 5, 5], truncated=False), Rollout(response_ids=[5], truncated=False)]
    requests = [SimpleNamespace(prompt_ids=[1])] * 2
    assert [r.response_ids for r in checked(answers, requests, limits)] == [[5, OVER], [5]]


def test_a_builder_that_cannot_read_responses_is_refused_by_name():
    class Plain:
        pass

    assert make_endings("never", Plain()) is None
    for how in ("closed", "looping"):
        with pytest.raises(
            ValueError, match=rf"end_rollouts is {how}, but the target builder Plain has no response_re"
        ):
            make_endings(how, Plain())
    assert make_endings("closed", Builder()).ends_at([5] * 500) is None
    assert make_endings("looping", Builder()).ends_at([5] * 500) == 128
