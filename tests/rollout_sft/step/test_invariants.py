"""A bug in the schedule, a pack or the micro-steps stops the run where it happens, before any forward."""

from dataclasses import replace

import pytest

from packsched import FillStats
from rollout_sft.inputs.segment import Segment, pack_of
from rollout_sft.rollouts.base import Rollout
from rollout_sft.rollouts.check_answers import AnswerLimits
from rollout_sft.step.asked import names
from rollout_sft.step.build import WindowBuilder
from rollout_sft.step.collate import collate_pack
from rollout_sft.step.micro_steps import arrange
from rollout_sft.step.scheduled_window import ScheduledWindow
from tests.tiny import tiny_arguments


def pack(*lens):
    return pack_of([Segment.from_lists([7] * n, [7] * n, [1.0] * (n - 1) + [0.0]) for n in lens])


def collate(pack):
    return collate_pack(pack, filler_id=0)


class Silent:
    """Generates nothing, since nothing is asked for."""

    counters = {}  # noqa: RUF012

    def generate(self, requests):
        return [Rollout(response_ids=[], truncated=False) for _ in requests]


def build(folder, packs, micro_steps, **settings):
    """A window of GA 3 whose schedule returns that many packs."""

    class Schedule:
        waiting = ()

        def schedule(self, micro_batches, micro_steps):
            return ScheduledWindow(packs=[pack(4)] * packs, fill=FillStats(), counters={})

    builder = WindowBuilder(
        tiny_arguments(folder, gradient_accumulation_steps=3, post_rollout_pack_scope="window", **settings),
        schedule=Schedule(),
        target_builder=None,
        backend=Silent(),
        collate=collate,
        limits=AnswerLimits(vocab_size=8, max_new_tokens=4, end_ids=frozenset({0})),
        rank=0,
    )
    return builder.build(iter(()), micro_steps, 0)


@pytest.mark.parametrize(
    ("packs", "micro_steps", "on_infeasible"),
    [(3, 3, "raise"), (3, 2, "raise"), (4, 3, "extra_steps"), (4, 2, "extra_steps")],
    ids=["whole", "an epoch's last window as long as a whole one", "extra packs", "extra packs in the last window"],
)
def test_a_window_may_have_these_packs(tmp_path, packs, micro_steps, on_infeasible):
    window = build(tmp_path, packs, micro_steps, on_infeasible=on_infeasible)
    assert (len(window.batches), window.micro_steps) == (packs, micro_steps)


@pytest.mark.parametrize(
    ("packs", "micro_steps", "on_infeasible"),
    [(2, 3, "raise"), (2, 3, "extra_steps"), (4, 3, "raise"), (4, 2, "raise"), (1, 2, "raise")],
)
def test_a_schedule_with_too_few_or_too_many_packs_is_stopped(tmp_path, packs, micro_steps, on_infeasible):
    with pytest.raises(AssertionError, match=f"{packs}, {micro_steps}, 3"):
        build(tmp_path, packs, micro_steps, on_infeasible=on_infeasible)


def test_a_pack_over_its_cap_is_stopped_when_its_tensors_are_built():
    whole = pack(5, 4)
    assert collate(replace(whole, packing_length=9)).tokens == 9
    with pytest.raises(AssertionError, match="9, 8"):
        collate(replace(whole, packing_length=8))


def test_a_pack_whose_layout_is_not_its_segments_is_stopped():
    with pytest.raises((AssertionError, ValueError)):
        collate(replace(pack(5, 4), layout=pack(5, 4, 1).layout, packing_length=20))


def test_more_packs_than_the_fullest_rank_has_are_stopped():
    batches = [collate(pack(n)) for n in (4, 5)]
    assert len(arrange(batches, 2, most=2, skip_idle=False, dummy=collate(pack()))) == 2
    with pytest.raises(AssertionError, match="2, 1"):
        arrange(batches, 2, most=1, skip_idle=False, dummy=collate(pack()))


@pytest.mark.parametrize(("samples", "more"), [(1, ""), (8, ""), (9, " and 1 more"), (20, " and 12 more")])
def test_an_error_names_the_first_eight_samples_of_its_batch(samples, more):
    named = ", ".join(repr(f"s{i}") for i in range(min(samples, 8)))
    assert names([{"id": f"s{i}"} for i in range(samples)]) == named + more
