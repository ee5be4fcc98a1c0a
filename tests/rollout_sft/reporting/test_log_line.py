"""The line of a step: what matters first, never wider than 120 columns."""

import pytest

from rollout_sft.reporting.log_line import COLUMNS, step_line

STEP = {
    "loss": 2.3146,
    "grad_norm": 1.5,
    "learning_rate": 2e-3,
    "epoch": 0.1,
    "packing/post_rollout_fill": 0.398,
    "packing/non_empty_packs": 2.09,
    "rollout/f1": 0.8123,
    "time/rollout_s": 1.234,
    "time/train_s": 0.4,
}
EVALUATION = {
    "eval_runtime": 3.21,
    "eval_rollout/f1": 0.9,
    "eval_rollout/parse_rate": 1.0,
    "eval_samples_per_second": 4,
}


def test_a_step_says_loss_score_fill_and_seconds():
    line = step_line(STEP, 7, 2000, 4)
    assert line == (
        "step    7/2000  loss 2.315  F1 0.812  fill 0.40  packs 2.09/4  rollout 1.23 s  train 0.40 s  lr 0.002"
        "  grad 1.5"
    )


def test_a_part_is_shown_where_it_takes_a_twentieth_of_the_step():
    parts = {"time/step_s": 2.0, "time/wait_s": 0.25, "time/build_s": 0.09, "time/pack_s": 0.02, "time/other_s": 0.12}
    line = step_line({**STEP, **parts}, 7, 2000, 4)
    assert line == (
        "step    7/2000  loss 2.315  F1 0.812  fill 0.40  packs 2.09/4  rollout 1.23 s  train 0.40 s  wait 0.25 s"
        "  other 0.12 s"
    )


def test_a_part_of_a_tiny_step_that_would_be_printed_as_nothing_is_left_out():
    parts = {"time/step_s": 0.03, "time/build_s": 0.004, "time/other_s": 0.006}
    assert step_line({**STEP, **parts}, 1, 2, 4) == step_line(STEP, 1, 2, 4).replace("  lr", "  other 0.01 s  lr")


def test_an_evaluation_says_when_it_was():
    assert step_line(EVALUATION, 0, 0, 4) == "evaluation before training  F1 0.900  parse rate 1.00  3.2 s"
    assert step_line(EVALUATION, 30, 60, 4).startswith("evaluation after step 30  F1")


def test_the_end_says_how_long_it_took():
    assert (
        step_line({"train_runtime": 12.3, "train_loss": 0.5}, 60, 60, 4) == "trained 60 steps in 12.3 s  mean loss 0.5"
    )


def test_the_user_s_own_metrics_are_shown():
    assert "accepted 0.75" in step_line({"loss": 1.0, "answers/accepted": 0.75}, 1, 9, 4)
    assert "accepted 0.75" in step_line({"eval_runtime": 1.0, "eval_answers/accepted": 0.75}, 1, 9, 4)


def test_own_metrics_stand_before_the_parts_that_come_and_go():
    logs = {**STEP, "time/step_s": 2.0, "time/wait_s": 0.25, "time/build_s": 0.3, "answers/right": 0.5}
    line = step_line(logs, 7, 2000, 4)
    assert line.index("train 0.40 s") < line.index("right 0.5") < line.index("build 0.30 s")
    crowded = step_line({**logs, "time/other_s": 0.3, "time/exchange_s": 0.3}, 7, 2000, 4)
    assert "right 0.5" in crowded
    assert "lr" not in crowded, "it is what does not fit"


@pytest.mark.parametrize("further", range(0, 40, 3))
def test_no_line_is_wider_than_a_terminal(further):
    many = {f"answers/metric_number_{i}": 123456.789 for i in range(further)}
    for logs in ({**STEP, **many}, {**EVALUATION, **{f"eval_{name}": value for name, value in many.items()}}):
        line = step_line(logs, 1_234_567, 9_999_999, 128)
        assert len(line) <= COLUMNS == 120
        assert line.endswith(("lr 0.002", "grad 1.5", " s")) or "metric_number" in line, "no part is cut in two"
