"""Segments that no pack can hold: an error by default; left out, counted and named where the configuration says so."""

import pytest

from packsched import OversizedSegmentError
from rollout_sft.step.oversized import OversizedFilter
from tests.rollout_sft.step.test_gradient import SCHEDULES, one_by_one, relative_difference
from tests.tiny import tiny_arguments

CAP = 60


def lens_of(segments):
    return [segment.encoded_len for segment in segments]


@pytest.mark.parametrize("name", ["micro", "window, dense"])
def test_skip_trains_the_gradient_of_the_segments_that_fit(make_trainer, caplog, name):
    trainer = make_trainer(global_max_length=CAP, on_oversized="skip", on_infeasible="extra_steps", **SCHEDULES[name])
    trainer.train()
    made = trainer.recorder.segments
    out = [segment for segment in made if segment.encoded_len > CAP]
    assert 0 < len(out) < len(made), "the lengths of the test data have to lie around the cap"
    line = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert line["packing/oversized"] == pytest.approx(len(out) / len(made))
    (warning,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert warning.startswith(f"left out {len(out)} segments that are longer than packing_length {CAP}: ")
    assert all(repr(segment.sample_id) in warning for segment in out)
    trained = [length for lens in trainer.last_window for length in lens]
    kept = [segment for segment in made if segment.encoded_len <= CAP]
    waiting = trainer.schedule.waiting
    assert sorted(trained + lens_of(waiting)) == sorted(lens_of(kept)), "every segment that fits is trained or waits"
    kept = [segment for segment in kept if all(segment is not other for other in waiting)]
    _, expected = one_by_one(make_trainer(global_max_length=CAP).model, kept)
    assert relative_difference(trainer.catcher.gradients[0], expected) < 1e-10


def test_raise_is_the_default(make_trainer):
    with pytest.raises(OversizedSegmentError, match=r"leave such samples out with on_oversized: skip"):
        make_trainer(global_max_length=CAP, **SCHEDULES["window, dense"]).train()


@pytest.mark.parametrize("overrides", [{}, {"packing": False, "on_oversized": "skip"}])
def test_nothing_is_left_out_unless_packs_are_to_skip(tmp_path, overrides):
    segments = [["any"]]
    assert OversizedFilter(tiny_arguments(tmp_path, **overrides)).apply(segments) == (segments, {})
