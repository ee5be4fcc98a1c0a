"""The trainers of `benchmarks.step_time.growth`, and a callback that splits their steps into parts."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.small_runs import ON_CPU
from benchmarks.step_time.workloads import SHAPES
from rollout_sft import RolloutSFTConfig, RolloutSFTTrainer
from rollout_sft.inputs.segment import Segment
from rollout_sft.reporting.log_line import LogLineCallback

PARTS = ("step", "clock", "model", "own", "build", "schedule")
"""
Seconds of a step. `step`: processor time of all of it; `clock`: clock time of all of it; `model`: processor time of
forward, loss, backward and optimizer; `own`: processor time of everything else, of which `build` makes segments out of
rollouts and `schedule` chooses the packs.
"""


class Timed(TrainerCallback):
    """Measures a trainer that was just made; `steps` holds the seconds of each optimizer step by part."""

    def __init__(self, trainer: Trainer):
        self.steps: list[dict[str, float]] = []
        build = trainer.get_batch_samples

        def get_batch_samples(*args: Any) -> Any:
            self._seconds = dict.fromkeys(PARTS, 0.0)
            self._began = time.process_time(), time.perf_counter()
            return build(*args)

        trainer.get_batch_samples = get_batch_samples
        trainer.compute_loss = self._added("model", trainer.compute_loss)
        trainer.accelerator.backward = self._added("model", trainer.accelerator.backward)
        if isinstance(trainer, RolloutSFTTrainer):
            trainer.schedule.schedule = self._added("schedule", trainer.schedule.schedule)
            trainer.window_builder._build = self._added("build", trainer.window_builder._build)
        trainer.add_callback(self)

    def _added(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            result = work(*args, **kwargs)
            self._seconds[part] += time.process_time() - start
            return result

        return run

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._optimizer_began = time.process_time()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._seconds["model"] += time.process_time() - self._optimizer_began

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        seconds = self._seconds
        seconds["step"] = time.process_time() - self._began[0]
        seconds["clock"] = time.perf_counter() - self._began[1]
        seconds["own"] = seconds["step"] - seconds["model"]
        self.steps.append(seconds)

    def medians(self) -> dict[str, float]:
        """Returns the median of each part over the steps after the first, which warms up."""
        return {part: statistics.median(step[part] for step in self.steps[1:]) for part in PARTS}


def tiny_model(vocabulary: int) -> PreTrainedModel:
    """Makes a Qwen3 of two layers with random weights."""
    torch.manual_seed(0)
    shape = {**SHAPES["tiny"], "vocab_size": vocabulary}
    return Qwen3ForCausalLM(Qwen3Config(**shape, max_position_embeddings=32768, tie_word_embeddings=True))


def common_arguments(*, batch_size: int, micro_steps: int, steps: int) -> dict[str, Any]:
    """Returns the arguments of both trainers. Learning rate 0: the optimizer works, and the weights stay."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": micro_steps,
        "max_steps": steps,
        "learning_rate": 0.0,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        **ON_CPU,
        "train_sampling_strategy": "sequential",
    }


def rollout_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    data: Dataset[Any],
    arguments: dict[str, Any],
    *,
    builder: Any = None,
    backend: Any = None,
) -> RolloutSFTTrainer:
    """Makes the trainer of this project; its log goes to `log.jsonl` alone."""
    trainer = RolloutSFTTrainer(
        model=model,
        args=RolloutSFTConfig(**arguments),
        processing_class=tokenizer,
        train_dataset=data,
        target_builder=builder,
        rollout_backend=backend,
    )
    trainer.pop_callback(LogLineCallback)
    return trainer


class LabelledSegments(Dataset[dict[str, Any]]):
    """Segments as a plain Trainer reads them."""

    def __init__(self, segments: Sequence[Segment]):
        self.segments = segments

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, index: int) -> dict[str, Any]:
        segment = self.segments[index]
        labels = segment.targets.masked_fill(segment.weights == 0, -100).roll(1)  # the model shifts them back
        return {"input_ids": segment.input_ids, "labels": labels}


def pad(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Collates samples, padded on the right."""
    ids, labels = ([sample[name] for sample in samples] for name in ("input_ids", "labels"))
    lens = torch.tensor([len(row) for row in ids])
    return {
        "input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
        "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
        "attention_mask": (torch.arange(int(lens.max())) < lens[:, None]).long(),
    }


def plain_trainer(model: PreTrainedModel, segments: Sequence[Segment], arguments: dict[str, Any]) -> Trainer:
    """Makes transformers' own Trainer on the same segments, padded."""
    from transformers import PrinterCallback

    trainer = Trainer(
        model=model, args=TrainingArguments(**arguments), train_dataset=LabelledSegments(segments), data_collator=pad
    )
    trainer.pop_callback(PrinterCallback)
    return trainer
