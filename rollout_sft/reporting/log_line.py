"""Logs a run: a progress bar, one readable line per optimizer step, and the same numbers in `log.jsonl`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments

from rollout_sft.reporting.metrics import is_own_metric
from rollout_sft.reporting.summary import SUMMARY_FILE

LOG_FILE = "log.jsonl"
COLUMNS = 120
"""Limits the line of a step."""


def step_line(logs: Mapping[str, Any], step: int, max_steps: int, micro_steps: int) -> str:
    """
    Renders one log entry in at most 120 columns; what does not fit is in `log.jsonl` alone.

    Args:
        logs (`Mapping[str, Any]`):
            Maps metric names to values.
        step (`int`):
            Optimizer steps done so far.
        max_steps (`int`):
            Total number of optimizer steps.
        micro_steps (`int`):
            Packs of a window (GA).

    Returns:
        `str`: for instance `step   3/2000  loss 2.31  F1 0.812  fill 0.40  packs 2.1/4  rollout 1.2 s ...`.
    """
    head = f"step {step:>{len(str(max_steps))}}/{max_steps}"
    if "train_runtime" in logs:
        head = f"trained {step} steps in {logs['train_runtime']:.1f} s"
        parts = [_part(logs, "train_loss", "mean loss {:.4g}")]
    elif any(name.startswith("eval_") for name in logs):
        head = f"evaluation {'before training' if not max_steps else f'after step {step}'}"
        scores = {name.removeprefix("eval_"): value for name, value in logs.items()}
        parts = [_part(scores, name, text) for name, text in _SCORES.items()]
        parts += own_metrics(scores)
        parts.append(_part(scores, "runtime", "{:.1f} s"))
    else:
        least = max(logs.get("time/step_s", 0.0) / 20, 0.005)  # less than that is printed as 0.00
        shown = {name: text for name, text in _PARTS.items() if logs.get(name, 0.0) > least}
        parts = [_part(logs, name, text) for name, text in _STEP.items()]
        parts.insert(4, _part(logs, "packing/non_empty_packs", f"packs {{:.3g}}/{micro_steps}"))
        # Before the parts that come and go, so that they stand in every line.
        parts += own_metrics(logs)
        parts += [_part(logs, name, text) for name, text in {**shown, **_STEP_END}.items()]
    line = head
    for part in filter(None, parts):
        if len(line) + 2 + len(part) <= COLUMNS:
            line += f"  {part}"
    return line


def own_metrics(logs: Mapping[str, Any]) -> list[str]:
    """Returns the numbers that a user's target builder or backend counts, as texts: those under no name of ours."""
    return [
        f"{name.rpartition('/')[2]} {value:.3g}"
        for name, value in logs.items()
        if is_own_metric(name) and isinstance(value, int | float)
    ]


def _part(logs: Mapping[str, Any], name: str, text: str) -> str:
    value = logs.get(name)
    return text.format(value) if isinstance(value, int | float) else ""


_STEP = {
    "loss": "loss {:.4g}",
    "rollout/f1": "F1 {:.3f}",
    "packing/post_rollout_fill": "fill {:.2f}",
    "padding/fill": "fill {:.2f}",
    "time/rollout_s": "rollout {:.2f} s",
    "time/train_s": "train {:.2f} s",
}
_PARTS = {
    "time/build_s": "build {:.2f} s",
    "time/pack_s": "plan {:.2f} s",
    "time/exchange_s": "exchange {:.2f} s",
    "time/weight_sync_s": "sync {:.2f} s",
    "time/wait_s": "wait {:.2f} s",
    "time/evaluation_s": "evaluation {:.2f} s",
    "time/other_s": "other {:.2f} s",
}
"""Parts that are shown where they take more than a twentieth of the step, and more than 5 ms."""
_STEP_END = {
    "learning_rate": "lr {:.2g}",
    "grad_norm": "grad {:.3g}",
    "rollout/truncation": "truncated {:.0%}",
    "non_finite_steps": "skipped {:.0f} steps",
}
_SCORES = {
    "rollout/f1": "F1 {:.3f}",
    "rollout/precision": "precision {:.3f}",
    "rollout/recall": "recall {:.3f}",
    "rollout/parse_rate": "parse rate {:.2f}",
    "rollout/truncation": "truncated {:.0%}",
}


class LogLineCallback(ProgressCallback):
    """
    Shows transformers' progress bar with [`step_line`] above it.

    Prints the lines without a bar where `disable_tqdm` is set or the output is not a terminal.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bars = sys.stderr.isatty()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """
        Starts the bar, and `log.jsonl` anew with the entries of the state, which are those of the checkpoint.

        Removes the summary of an earlier run, which would make this one look finished.
        """
        if self._bars and not args.disable_tqdm:
            super().on_train_begin(args, state, control, **kwargs)
        if state.is_world_process_zero:
            entries = "".join(json.dumps(entry) + "\n" for entry in state.log_history)
            _log_file(args).write_text(entries, encoding="utf-8")
            _log_file(args).with_name(SUMMARY_FILE).unlink(missing_ok=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Moves the bar."""
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Moves the bar of an evaluation."""
        if self._bars and not args.disable_tqdm:
            super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes the line and the entry."""
        if not state.is_world_process_zero or logs is None:
            return
        line = step_line(logs, state.global_step, state.max_steps, args.gradient_accumulation_steps)
        if self.training_bar is not None:
            self.training_bar.write(line)
        else:
            print(line, flush=True)
        with _log_file(args).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**logs, "step": state.global_step}) + "\n")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Closes the bar."""
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)


def _log_file(args: TrainingArguments) -> Path:
    path = Path(str(args.output_dir)) / LOG_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
