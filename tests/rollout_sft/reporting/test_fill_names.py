"""The log names of the packing metrics are those of the requirement, whatever packsched calls its numbers."""

from packsched import FillStats
from rollout_sft.reporting.metrics import StepMetrics, WindowReport


def test_the_packing_metrics_are_logged_under_their_names():
    metrics = StepMetrics()
    fill = FillStats.from_packs([9, 3, 0, 0], 10, segments=5, lower_bound=2)
    metrics.add([WindowReport(raw_micro_batches=4, packs=2, weight_sum=12.0, fill=fill, left_over=7)], 4)
    logged = {name: value for name, value in metrics.take().items() if not name.startswith("time/")}
    assert logged == {
        "packing/post_rollout_fill": 12 / 40,
        "packing/fill_non_empty": 12 / 20,
        "packing/min_fill": 3 / 10,
        "packing/non_empty_packs": 2,
        "packing/lower_bound": 2,
        "packing/segments": 5,
        "packing/post_rollout_buffer": 7,
        "packing/idle_micro_steps": 2,
        "packing/extra_packs": 0,
    }
