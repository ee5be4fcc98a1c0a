"""The callback that draws test canvases with predicted and true boxes when training ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import TrainerCallback

from examples.digits.data import DigitsDataset
from rollout_sft import RolloutSFTTrainer
from rollout_sft.targets.objects.builder import ObjectsTargetBuilder

Objects = Sequence[Mapping[str, Any]]


class DrawCanvases(TrainerCallback):
    """
    Writes `canvases.png` to the output folder: what the trained model finds on canvases of the split `test`.

    Args:
        trainer (`RolloutSFTTrainer`):
            Answers as in evaluation. Its evaluation data set gives the seed and the number of digits. Where that is not
            a [`DigitsDataset`], or the target builder is not `objects`, nothing is drawn.
        canvases (`int`, *optional*, defaults to 8):
            How many.
    """

    def __init__(self, trainer: RolloutSFTTrainer, canvases: int = 8):
        self.trainer = trainer
        self.canvases = canvases

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Every rank takes part in the prediction, rank 0 draws."""
        evaluated, builder = self.trainer.eval_dataset, self.trainer.target_builder
        if not isinstance(evaluated, DigitsDataset) or not isinstance(builder, ObjectsTargetBuilder):
            return
        dataset = evaluated.for_pictures(self.canvases)
        samples = [dataset[i] for i in range(self.canvases)]
        predicted = [dataset.to_pixels(builder.read_answer(r)) for r in self.trainer.roll_out(samples)]
        if state.is_world_process_zero:
            pixels = [dataset.canvas(i) for i in range(self.canvases)]
            path = Path(args.output_dir) / "canvases.png"
            draw_canvases(pixels, predicted, [dataset.to_pixels(s["objects"]) for s in samples], path)


def draw_canvases(
    canvases: Sequence[NDArray[np.float64]],
    predicted: Sequence[Objects],
    true: Sequence[Objects],
    path: str | Path,
    *,
    columns: int = 4,
) -> None:
    """
    Writes a grid of canvases to a PNG file: true boxes dashed, predicted ones drawn through.

    A predicted box is green where box and description are exactly true, else red.

    Args:
        canvases (`Sequence[NDArray]`):
            Pixels, each of shape `(height, width)`.
        predicted, true (`Sequence[Sequence[Mapping]]`):
            For each canvas its objects: `desc` and `bbox_2d`.
        path (`str` or `Path`):
            The file; its folder is made.
        columns (`int`, *optional*, defaults to 4):
            Canvases in a row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    rows = -(-len(canvases) // columns)
    figure = Figure(figsize=(3 * columns, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis in axes:
        axis.set_axis_off()
    for axis, canvas, found, truth in zip(figure.axes, canvases, predicted, true, strict=False):
        axis.imshow(canvas, cmap="gray_r", extent=(0, canvas.shape[1], canvas.shape[0], 0))
        known = {(o["desc"], *map(float, o["bbox_2d"])) for o in truth}
        for o in truth:
            _box(axis, o, "tab:blue", "--", with_desc=False)
        hits = 0
        for o in found:
            hit = (o["desc"], *map(float, o["bbox_2d"])) in known
            hits += hit
            _box(axis, o, "tab:green" if hit else "tab:red", "-", with_desc=True)
        axis.set_title(f"{hits} of {len(truth)} right, {len(found)} predicted", fontsize=9)
    figure.suptitle("predicted: green right, red wrong; true: blue, dashed")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def _box(axis: Any, item: Mapping[str, Any], colour: str, style: str, *, with_desc: bool) -> None:
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = item["bbox_2d"]
    # Predicted boxes are drawn a little smaller, so that both can be seen.
    inset = 0.4 if with_desc else 0.0
    size = (x2 - x1 - 2 * inset, y2 - y1 - 2 * inset)
    axis.add_patch(Rectangle((x1 + inset, y1 + inset), *size, fill=False, edgecolor=colour, linestyle=style))
    if with_desc:
        label = {"facecolor": colour, "edgecolor": "none", "pad": 1.0}
        axis.text(x1 + 0.8, y1 + 2.2, item["desc"], color="white", fontsize=7, parse_math=False, bbox=label)
