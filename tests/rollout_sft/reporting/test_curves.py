"""The pictures of a run: every panel shows what the log holds."""

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from rollout_sft.reporting.curves import draw_curves

STEPS = [
    {
        "step": step,
        "loss": 3.0 / step,
        "packing/post_rollout_fill": 0.4,
        "packing/fill_non_empty": 0.8,
        "rollout/f1": step / 10,
        "answers/accepted": step / 20,
        "time/rollout_s": 2.0,
        "time/train_s": 1.0,
    }
    for step in (1, 2, 3)
]
EVALUATIONS = [{"step": 0, "eval_rollout/f1": 0.0, "eval_runtime": 1.0}, {"step": 3, "eval_rollout/f1": 0.5}]


def lines_of(log, path, monkeypatch):
    """Draws, and returns for each panel its lines: label, x and y."""
    monkeypatch.setattr(plt, "close", lambda figure: None)
    draw_curves(log, path, "Stage one")
    figure = plt.gcf()
    found = {
        panel.get_title(loc="left"): {
            line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in panel.get_lines()
        }
        for panel in figure.axes
    }
    monkeypatch.undo()
    plt.close(figure)
    return found


def test_the_panels_show_loss_score_fill_and_seconds(tmp_path, monkeypatch):
    panels = lines_of([*EVALUATIONS, *STEPS], tmp_path / "curves.png", monkeypatch)
    assert panels["loss"] == {"training": ([1, 2, 3], [3.0, 1.5, 1.0])}
    assert panels["score"] == {
        "F1, rollouts in training": ([1, 2, 3], [0.1, 0.2, 0.3]),
        "F1, evaluation": ([0, 3], [0.0, 0.5]),
    }
    assert list(panels["fill of the packs"]) == ["all GA packs", "non-empty packs"]
    assert panels["seconds per step"]["rollout"] == ([1, 2, 3], [2.0, 2.0, 2.0])
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_without_f1_the_user_s_own_metrics_are_the_score(tmp_path, monkeypatch):
    log = [{name: value for name, value in entry.items() if name != "rollout/f1"} for entry in STEPS]
    assert list(lines_of(log, tmp_path / "c.png", monkeypatch)["score"]) == ["accepted, rollouts in training"]


def test_a_run_without_a_step_gives_empty_panels(tmp_path, monkeypatch):
    assert set(map(len, lines_of([], tmp_path / "c.png", monkeypatch).values())) == {0}
