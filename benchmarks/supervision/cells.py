"""One cell of the tables: stage 2 trained from the weights of a seed's stage 1, evaluated at marks on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers
import yaml
from transformers import TrainerCallback

from rollout_sft.config.run import load_run
from rollout_sft.config.sections import StageConfig
from rollout_sft.config.vllm import VLLMConfig
from rollout_sft.data.loading import load_dataset
from rollout_sft.model.loading import load_model, load_tokenizer
from rollout_sft.train import run_stage
from rollout_sft.trainer import RolloutSFTTrainer

ROOT = Path(__file__).parents[2]
LEARNING_RATE = 4e-4
EVALUATED = 256
"""Canvases of an evaluation; greedy."""

ROWS: dict[str, dict[str, Any]] = {
    "references only": {"reference_fraction": 1.0},
    "requirement": {"reference_fraction": 0.0, "prefix_supervision": "coordinates"},
    "expert": {"reference_fraction": 0.0, "prefix_supervision": "expert"},
    "requirement, half references": {"reference_fraction": 0.5, "prefix_supervision": "coordinates"},
    "expert, half references": {"reference_fraction": 0.5, "prefix_supervision": "expert"},
    "expert, rollouts by vLLM": {"prefix_supervision": "expert", "rollout_backend": "vllm"},
    "requirement, rollouts by vLLM": {"prefix_supervision": "coordinates", "rollout_backend": "vllm"},
}
MEASURED = {
    "f1": "eval_rollout/f1",
    "precision": "eval_rollout/precision",
    "recall": "eval_rollout/recall",
    "parse_rate": "eval_rollout/parse_rate",
    "false_positives": "eval_rollout/false_positives",
}


@dataclass(frozen=True)
class Cell:
    """
    What is trained, and when it is evaluated.

    Args:
        table (`str`): `constant`, `decayed` or `labelled`.
        row (`str`): One of `ROWS`.
        seed (`int`): Of stage 1 and of stage 2.
        seconds (`Sequence[int]`): Marks in seconds of processor time; training ends at the last.
    """

    table: str
    row: str
    seed: int
    seconds: tuple[int, ...]

    @property
    def key(self) -> str:
        """Names the cell in the results."""
        return f"{self.table} / {self.row} / {self.seed}"


class Clock(TrainerCallback):
    """
    Evaluates when marks of processor time or of optimizer steps are passed, and ends at the last mark of time.

    Processor time of rollouts, building and training counts, that of evaluation does not: a busy machine changes
    nothing but the date.

    Args:
        seconds (`Sequence[int]`):
            Marks of time.
        steps (`Sequence[int]`):
            Marks of steps.
        decays (`bool`):
            Whether the learning rate falls with the time used, as a cosine to a twentieth.
    """

    def __init__(self, seconds: Sequence[int], steps: Sequence[int], *, decays: bool):
        self.seconds, self.steps, self.decays = sorted(seconds), set(steps), decays
        self.passed = 0
        self.mark: int | None = None
        self.started = self.stopped = 0.0
        self.evaluations: list[dict[str, Any]] = []

    @property
    def used(self) -> float:
        """Seconds of processor time spent on training."""
        return time.process_time() - self.started

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.process_time()

    def on_step_begin(self, args, state, control, optimizer, lr_scheduler, **kwargs):
        if self.decays:
            share = min(self.used / self.seconds[-1], 1.0)
            factor = 0.05 + 0.95 * (1 + math.cos(math.pi * share)) / 2
            for group, rate in zip(optimizer.param_groups, lr_scheduler.get_last_lr(), strict=True):
                group["lr"] = rate * factor

    def on_step_end(self, args, state, control, **kwargs):
        used, self.stopped = self.used, time.process_time()
        self.mark = None
        while self.passed < len(self.seconds) and used >= self.seconds[self.passed]:
            self.mark = self.seconds[self.passed]
            self.passed += 1
        control.should_evaluate = self.mark is not None or state.global_step in self.steps
        control.should_training_stop = self.passed == len(self.seconds)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        measured = {name: metrics[key] for name, key in MEASURED.items()}
        used = round(self.stopped - self.started, 2)
        self.evaluations.append({"mark": self.mark, "seconds": used, "step": state.global_step, **measured})
        self.started += time.process_time() - self.stopped


def stages(seed: int, folder: Path) -> list[StageConfig]:
    """
    The quickstart's two stages with this seed; stage 1 lies in `folder/seedN/stage1`.

    Canvases and stage 1 are as they were when the table was measured; the quickstart has become shorter since.
    """
    folder.mkdir(parents=True, exist_ok=True)
    training = {"seed": seed, "output_dir": str(folder / "unused"), "callbacks": [], "per_device_eval_batch_size": 128}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"extends": str(ROOT / "configs" / "quickstart.yaml"), "training": training}))
    first, second = load_run(path)
    assert first.eval is not None
    evaluated = replace(first.eval, arguments={})
    first = replace(first, train=replace(first.train, size=16000, arguments={"ramp_fraction": 0.5}), eval=evaluated)
    second = replace(second, train=replace(second.train, arguments={}), eval=evaluated)
    first.training.learning_rate, first.training.lr_scheduler_kwargs = 2e-3, {"min_lr_rate": 0.3}
    first.training.output_dir = str(folder / f"seed{seed}" / "stage1")
    first.training.resume_from_checkpoint = True
    return [first, second]


def start(seed: int, folder: Path) -> dict[str, Any]:
    """Trains stage 1 unless its weights are there, and evaluates them."""
    first, second = stages(seed, folder)
    run_stage(first)
    metrics = _trainer(second, first.training.output_dir, []).evaluate()
    return {"mark": 0, "seconds": 0.0, "step": 0, **{name: metrics[key] for name, key in MEASURED.items()}}


def train(cell: Cell, folder: Path, steps: Sequence[int] = ()) -> list[dict[str, Any]]:
    """The evaluations of a cell, at its marks and after `steps` optimizer steps."""
    first, second = stages(cell.seed, folder)
    config = second.training
    for name, value in ROWS[cell.row].items():
        setattr(config, name, value)
    if config.rollout_backend == "vllm":
        config.vllm = VLLMConfig(enforce_eager=True, engine_args={"kv_cache_memory_bytes": 1 << 28})
    config.learning_rate = LEARNING_RATE
    config.lr_scheduler_type = transformers.SchedulerType.CONSTANT_WITH_WARMUP
    config.lr_scheduler_kwargs = {}
    config.num_train_epochs = 1000
    size = 400 if cell.table == "labelled" else 32000
    clock = Clock(cell.seconds, steps, decays=cell.table == "decayed")
    trainer = _trainer(replace(second, train=replace(second.train, size=size)), first.training.output_dir, [clock])
    trainer.generation.sync()  # an engine starts before the clock does
    trainer.train()
    trainer.generation.close()
    return clock.evaluations


def _trainer(stage: StageConfig, weights: str | None, callbacks: list[TrainerCallback]) -> RolloutSFTTrainer:
    spec = replace(stage.model, model_name_or_path=weights, config=None)
    tokenizer = load_tokenizer(spec)
    assert stage.eval is not None
    return RolloutSFTTrainer(
        model=load_model(spec, tokenizer, seed=stage.training.seed),
        args=stage.training,
        processing_class=tokenizer,
        train_dataset=load_dataset(stage.train, tokenizer, seed=stage.training.seed),
        eval_dataset=load_dataset(replace(stage.eval, size=EVALUATED), tokenizer, seed=stage.training.seed),
        callbacks=callbacks,
    )
