"""The numbers of the final table and of summary.json, a user's own among them."""

from rollout_sft.reporting.summary import print_table, summarise

LOG = [
    {"step": 1, "loss": 2.0, "time/train_s": 1.0, "rollout/f1": 0.5, "answers/accepted": 0.25},
    {"step": 2, "loss": 1.0, "time/train_s": 3.0, "rollout/f1": 0.7, "answers/accepted": 0.75},
    {"step": 2, "train_runtime": 9.0},
]
BEFORE = {"eval_rollout/f1": 0.1, "eval_answers/accepted": 0.0, "eval_runtime": 1.0, "epoch": 0}
AFTER = {"eval_rollout/f1": 0.8, "eval_answers/accepted": 0.5, "eval_runtime": 1.0, "epoch": 1}


def test_own_metrics_are_summarised_beside_ours():
    numbers = summarise(LOG, BEFORE, AFTER)
    assert (numbers["f1_before"], numbers["f1_after"], numbers["steps"], numbers["train_s"]) == (0.1, 0.8, 2.0, 4.0)
    own = {name: value for name, value in numbers.items() if "answers" in name}
    assert own == {
        "answers/accepted": 0.5,
        "eval_answers/accepted_before": 0.0,
        "eval_answers/accepted_after": 0.5,
    }
    assert not {name for name in numbers if "runtime" in name or "epoch" in name or name == "loss"}


def test_the_largest_part_is_named_and_numbers_count_every_step():
    """A line of logging_steps 5 holds means over five steps."""
    log = [
        {
            "step": 5,
            "loss": 1.0,
            "time/step_s": 4.0,
            "time/train_s": 1.0,
            "time/rollout_s": 3.0,
            "tokens/generated": 90.0,
        },
        {
            "step": 6,
            "loss": 1.0,
            "time/step_s": 9.0,
            "time/train_s": 9.0,
            "time/rollout_s": 0.0,
            "tokens/generated": 10.0,
        },
    ]
    numbers = summarise(log, {}, {})
    assert (numbers["steps"], numbers["rollout_s"], numbers["train_s"]) == (6.0, 15.0, 14.0)
    assert numbers["step_s"] == 29 / 6, "the mean over steps, not over lines"
    assert (numbers["largest_part"], numbers["largest_part_share"]) == ("rollout", 15 / 29)
    assert (numbers["tokens_generated"], numbers["tokens_kept"]) == (460.0, 0.0)


def test_the_table_has_a_row_for_each_own_metric(capsys):
    print_table([("one", summarise(LOG, BEFORE, AFTER)), ("two", summarise(LOG[:1], {}, {}))], "title")
    rows = [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
    assert "answers/accepted in training, mean 0.500 0.250" in rows
    assert "eval answers/accepted before 0.000 -" in rows
    assert "eval answers/accepted after 0.500 -" in rows
    assert "eval F1 after 0.800 -" in rows
