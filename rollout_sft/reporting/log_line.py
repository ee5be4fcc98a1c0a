"""Logs a run: a progress bar, one readable line per optimizer step, and the same numbers in `log.jsonl`."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments

LOG_FILE = "log.jsonl"


def format_line(logs: dict[str, Any], step: int, max_steps: int) -> str:
    """
    Renders one log entry.

    Args:
        logs (`dict`):
            Maps metric names to values; names with a slash are grouped by the part before it.
        step (`int`):
            Optimizer steps done so far.
        max_steps (`int`):
            Total number of optimizer steps.

    Returns:
        `str`: for instance `step 3/90 loss=2.31 | packing: segments=16 ... | time: train_s=0.41`.
    """
    plain = [(name, value) for name, value in logs.items() if "/" not in name and name != "total_flos"]
    grouped = sorted(((n, v) for n, v in logs.items() if "/" in n), key=lambda item: item[0].rpartition("/")[0])
    parts = [" ".join([f"step {step}/{max_steps}", *(f"{n}={_number(v)}" for n, v in plain)])]
    for prefix, items in groupby(grouped, key=lambda item: item[0].rpartition("/")[0]):
        parts.append(f"{prefix}: " + " ".join(f"{n.rpartition('/')[2]}={_number(v)}" for n, v in items))
    return " | ".join(parts)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class LogLineCallback(ProgressCallback):
    """Shows transformers' progress bar with [`format_line`] above it; prints it without a bar (`disable_tqdm`)."""

    def __init__(self) -> None:
        super().__init__()
        self._log: Path | None = None  # the first entry of a run starts a new file

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the bar; on resume, starts `log.jsonl` with the entries of the checkpoint."""
        if not args.disable_tqdm:
            super().on_train_begin(args, state, control, **kwargs)
        if state.is_world_process_zero and state.log_history:
            self._begin(args, "".join(json.dumps(entry) + "\n" for entry in state.log_history))

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
        if not args.disable_tqdm:
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
        line = format_line(logs, state.global_step, state.max_steps)
        if self.training_bar is not None:
            self.training_bar.write(line)
        else:
            print(line, flush=True)
        path = self._log or self._begin(args, "")
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**logs, "step": state.global_step}) + "\n")

    def _begin(self, args: TrainingArguments, text: str) -> Path:
        self._log = Path(str(args.output_dir)) / LOG_FILE
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._log.write_text(text, encoding="utf-8")
        return self._log

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Closes the bar."""
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)
