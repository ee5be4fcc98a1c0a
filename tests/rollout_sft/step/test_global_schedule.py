"""Scope `global` in one process: what is refused, and how many packs a window gets that does not fit."""

import pytest
import torch

from packsched import OversizedSegmentError
from rollout_sft.inputs.segment import Segment
from rollout_sft.step.global_schedule import GlobalSchedule
from rollout_sft.step.pack_times import PackTimes
from tests.tiny import tiny_arguments


def segment(tokens):
    return Segment.from_lists([1] * tokens, [1] * tokens, [*[1.0] * (tokens - 1), 0.0], sample_id=f"of {tokens}")


@pytest.fixture
def schedule(tmp_path):
    config = tiny_arguments(
        tmp_path,
        global_max_length=100,
        post_rollout_pack_scope="global",
        gradient_accumulation_steps=2,
        on_infeasible="extra_steps",
    )
    times = PackTimes(torch.device("cpu"), active=False)
    return GlobalSchedule(config, lambda one: one.encoded_len, times).schedule


def test_a_segment_longer_than_a_pack_is_refused_and_a_whole_pack_is_not(schedule):
    assert [len(pack) for pack in schedule([[segment(100)], [segment(1)]], 2).packs] == [1, 1]
    with pytest.raises(OversizedSegmentError, match=r"sample 'of 101': .*encoded_len 101"):
        schedule([[segment(100)], [segment(101)]], 2)


def test_a_window_that_does_not_fit_is_planned_again_at_once_with_its_least_packs(schedule, monkeypatch):
    """Not with one pack more each time: 30 half-full packs would be planned 28 times."""
    from rollout_sft.step import global_schedule

    tried, plan_ranks = [], global_schedule.plan_ranks

    def plan(lens, packing_length, micro_steps, **kwargs):
        tried.append(micro_steps)
        return plan_ranks(lens, packing_length, micro_steps, **kwargs)

    monkeypatch.setattr(global_schedule, "plan_ranks", plan)
    window = schedule([[segment(100)] * 6, [segment(50)]], 2)
    assert tried == [2, 7]
    assert len(window.packs) == 7
