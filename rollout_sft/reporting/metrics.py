"""Collects the numbers of the log line as (numerator, denominator) pairs, which stay correct when they are summed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from numbers import Real

from packsched import FillStats
from rollout_sft.reporting.stopwatch import Stopwatch

Counters = dict[str, tuple[float, float]]
"""Maps a metric's name to (numerator, denominator); pairs are summed over samples, micro-steps and ranks, then
divided."""


_TAKEN = {
    *("loss", "grad_norm", "learning_rate", "epoch", "step", "total_flos", "num_input_tokens_seen"),
    *("non_finite_steps", "runtime", "samples_per_second", "steps_per_second"),
}
_TAKEN_GROUPS = ("train_", "eval_", "packing/", "padding/", "time/", "equivalence/", "balance/", "tokens/")
_OURS = ("rollout/", *_TAKEN_GROUPS)


def is_own_metric(name: str) -> bool:
    """Returns whether a log name is a user's: neither the trainer's own nor one of the group `rollout/`."""
    return name not in _TAKEN and not name.startswith(_OURS)


def check_counters(counters: Counters, origin: str) -> Counters:
    """
    Refuses counters with a name that the trainer itself logs.

    Args:
        counters (`Counters`):
            The counters of a backend or a target builder.
        origin (`str`):
            Says in messages who made the counters.

    Returns:
        `Counters`: the same counters.

    Raises:
        `ValueError`: the trainer logs such a name itself, or a value is not a pair of numbers.
    """
    for name, pair in counters.items():
        if name in _TAKEN or name.startswith(_TAKEN_GROUPS):
            raise ValueError(
                f"{origin} counts {name!r}, a name that the trainer logs itself; choose another, such as "
                f"'target/{name.rpartition('/')[2]}'."
            )
        if not (isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(number, Real) for number in pair)):
            raise ValueError(f"{origin} counts {name!r} as {pair!r}; a counter is a pair (numerator, denominator).")
    return counters


class Ratios:
    """
    Sums named (numerator, denominator) pairs over samples, micro-steps, steps and ranks before it divides them.

    A mean of means would give a micro-batch with one rollout the weight of one with thirty.
    """

    def __init__(self) -> None:
        self._pairs: Counters = {}

    def add(self, counters: Mapping[str, tuple[float, float]]) -> None:
        """Adds each pair to the pair of the same name."""
        for name, (numerator, denominator) in counters.items():
            n, d = self._pairs.get(name, (0.0, 0.0))
            self._pairs[name] = (n + numerator, d + denominator)

    def pairs(self) -> Counters:
        """Returns a copy of the pairs, to send to other ranks."""
        return dict(self._pairs)

    def values(self) -> dict[str, float]:
        """Returns numerator / denominator by name; 0.0 where nothing was counted (precision without objects, say)."""
        return {name: n / d if d else 0.0 for name, (n, d) in self._pairs.items()}


@dataclass(frozen=True, kw_only=True)
class WindowReport:
    """
    Holds what one rank tells the others about its window: plain numbers only.

    Args:
        raw_micro_batches (`int`):
            Micro-batches that the data gave.
        packs (`int`):
            Packs that hold segments.
        weight_sum (`float`):
            Sum of the loss weights trained in this window.
        fill (`FillStats`):
            How full the packs are.
        counters (`Counters`):
            Rollout and target metrics.
        left_over (`int`):
            Segments that wait in the carry buffer.
        response_lens (`tuple[int, ...]`):
            The lengths of the responses, from which the waves of the next window follow; empty where there are none.

    Before the last wave of a window `packs` are those that may be trained now, and `weight_sum` is an estimate.
    """

    raw_micro_batches: int
    packs: int
    weight_sum: float
    fill: FillStats
    counters: Counters = field(default_factory=dict)
    left_over: int = 0
    response_lens: tuple[int, ...] = ()


class StepMetrics:
    """Collects the windows' reports, and the seconds of this rank's phases, between two log lines."""

    def __init__(self) -> None:
        self._stopwatch = Stopwatch()
        self._began = False
        self._clear()

    def _clear(self) -> None:
        self._ratios = Ratios()
        self._fill = FillStats()
        self._latest: dict[str, float] = {}
        self._windows = 0

    def add(self, reports: list[WindowReport], micro_steps: int) -> None:
        """Adds one window of `micro_steps` micro-steps, with the reports of all ranks."""
        self._windows += 1
        for report in reports:
            self._ratios.add(report.counters)
            self._fill = self._fill.merge(report.fill)
        self._latest["packing/post_rollout_buffer"] = float(sum(r.left_over for r in reports))
        most = max(report.packs for report in reports)
        self._ratios.add({"packing/idle_micro_steps": (float(max(0, micro_steps - most)), 1.0)})
        self._ratios.add({"packing/extra_packs": (float(max(0, most - micro_steps)), 1.0)})

    def add_values(self, values: Mapping[str, float]) -> None:
        """Adds plain numbers; the latest of each name is logged."""
        self._latest.update(values)

    def timed(self) -> AbstractContextManager[None]:
        """Measures the training that runs inside the block; see [`~rollout_sft.reporting.stopwatch`]."""
        self._began = False
        return self._stopwatch.running()

    def window_begins(self) -> None:
        """Says that the next window is built from now on; what was before the first one belongs to no step."""
        self.training_ends()
        if not self._began:
            self._stopwatch.take()
        self._began = True

    def training_begins(self) -> None:
        """Says that the window is built: from now on, what is in no other phase is training."""
        self._stopwatch.outside("train")

    def training_ends(self) -> None:
        """Says that the optimizer step is done; may be called more than once."""
        self._stopwatch.outside("other")

    def take(self) -> dict[str, float]:
        """Returns the numbers of the log line, and forgets them."""
        self.training_ends()
        seconds = self._stopwatch.take()
        seconds["step"] = sum(seconds.values())
        times = {f"time/{name}_s": total / max(1, self._windows) for name, total in seconds.items()}
        packing = _fill_metrics(self._fill) if self._fill.windows else {}
        values = {**packing, **self._latest, **self._ratios.values(), **times}
        self._clear()
        return values


def _fill_metrics(fill: FillStats) -> dict[str, float]:
    """Returns packsched's metrics under their log names; the requirement names the metric for `fill` over all packs."""
    metrics = fill.metrics()
    return {"packing/post_rollout_fill": metrics.pop("fill"), **{f"packing/{name}": n for name, n in metrics.items()}}
