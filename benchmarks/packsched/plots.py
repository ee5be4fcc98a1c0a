"""The two pictures of `docs/algorithms.md`: fill and time against segments, time against packing_length."""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from benchmarks.packsched.compare import Curves

plt.rcParams["svg.hashsalt"] = "packsched"


def draw(target: Path, fills: Curves, times: Curves, by_segments: Curves, by_cap: Curves) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    for policy, curve in fills.items():
        left.plot(list(curve), [100 * value for value in curve.values()], marker="o", markersize=3, label=policy)
    for policy, curve in times.items():
        right.plot(list(curve), list(curve.values()), marker="o", markersize=3, label=policy)
    left.set(xscale="log", xlabel="segments in the buffer", ylabel="fill of the next pack, %", title="select: fill")
    right.set(xscale="log", yscale="log", xlabel="segments in the buffer", ylabel="CPU ms", title="select: time")
    _save(figure, (left, right), target / "select.svg")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    for name, curve in by_segments.items():
        left.plot(list(curve), list(curve.values()), marker="o", markersize=3, label=name)
    for name, curve in by_cap.items():
        right.plot(list(curve), list(curve.values()), marker="o", markersize=3, label=name)
    left.set(xscale="log", yscale="log", xlabel="segments", ylabel="CPU ms", title="time against segments")
    right.set(xscale="log", yscale="log", xlabel="packing_length", ylabel="CPU ms", title="time against packing_length")
    _save(figure, (left, right), target / "growth.svg")


def _save(figure, axes, path: Path) -> None:
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
