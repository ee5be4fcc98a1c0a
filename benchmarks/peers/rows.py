"""What is compared: TRL's `SFTTrainer` and `rollout_sft`, each in its configurations, on one window."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
import warnings
from typing import Any

import torch
import trl
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer import utils as trl_utils

from benchmarks.peers.workloads import as_dataset
from benchmarks.step_time.variants import Clock, NoRollouts, flat_gradient
from benchmarks.step_time.workloads import FixedRollouts, Workload
from examples.digits.tokenizer import build_digits_tokenizer
from rollout_sft import RolloutSFTConfig, RolloutSFTTrainer
from rollout_sft.reporting.log_line import LogLineCallback

DEFAULTS, PADDED, PADDING_FREE = "TRL, its defaults", "TRL, padded", "TRL, padding_free"
COMPACT, BFD = "TRL, padding_free, logits as on a GPU", "TRL, packing (bfd) of the window alone"
MICRO, BALANCED, DENSE = "rollout_sft, micro", "rollout_sft, window, balanced", "rollout_sft, window, dense, skip"

OF_TRL: dict[str, dict[str, Any]] = {
    DEFAULTS: {},
    PADDED: {"gradient_checkpointing": False},
    PADDING_FREE: {"gradient_checkpointing": False, "padding_free": True},
    COMPACT: {"gradient_checkpointing": False, "padding_free": True},
    BFD: {"gradient_checkpointing": False, "packing": True, "packing_strategy": "bfd"},
}
OURS: dict[str, dict[str, Any]] = {
    MICRO: {"post_rollout_pack_scope": "micro"},
    BALANCED: {"post_rollout_pack_scope": "window", "pack_objective": "balanced"},
    DENSE: {"post_rollout_pack_scope": "window", "pack_objective": "dense", "idle_micro_steps": "skip"},
}


def row_names(device: str) -> list[str]:
    """Names the rows; on a GPU TRL projects only supervised positions by itself."""
    return [name for name in (*OF_TRL, *OURS) if name != COMPACT or device == "cpu"]


class Watch(TrainerCallback):
    """Takes the time of each optimizer step, from the end of the one before, and the gradient of the first."""

    def __init__(self, device: torch.device):
        self.work, self.ends, self.gradient = Clock(device), [], None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.gradient is None:
            self.gradient = flat_gradient(model)

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append((self.work.now(), time.perf_counter()))

    def seconds(self) -> tuple[float, float]:
        """Processor time (on a GPU: until it is done) and wall time of a step, the mean without the first."""
        (work, wall), (last_work, last_wall), steps = self.ends[0], self.ends[-1], len(self.ends) - 1
        return (last_work - work) / steps, (last_wall - wall) / steps


def train(
    name: str, workload: Workload, window: FixedRollouts, model: PreTrainedModel, *, steps: int
) -> tuple[Watch, int]:
    """Trains the window `steps` times; returns the times with the first gradient, and the forwards of a step."""
    quiet()
    device = model.device
    watch = Watch(device)
    common = {
        "per_device_train_batch_size": workload.batch_size,
        "gradient_accumulation_steps": workload.gradient_accumulation_steps,
        "num_train_epochs": steps,
        "learning_rate": 0.0,  # the optimizer does its work, and every step sees the same weights
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device.type == "cpu",
        "bf16": False,  # the model has the dtype that it is trained in
    }
    model.set_attn_implementation(attention_of(device))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if name in OURS:
            trainer: Trainer = ours(name, workload, window, model, {**common, "output_dir": folder})
        else:
            trainer = of_trl(name, workload, window, model, {**common, "output_dir": folder})
        if name == COMPACT:
            stack.enter_context(compact_logits())
        trainer.add_callback(watch)
        trainer.pop_callback(PrinterCallback)
        forwards = 0
        compute_loss = trainer.compute_loss

        def counted(*args, **kwargs):
            nonlocal forwards
            forwards += 1
            return compute_loss(*args, **kwargs)

        trainer.compute_loss = counted
        trainer.train()
    assert len(watch.ends) == steps, (len(watch.ends), steps)
    return watch, forwards // steps


def ours(
    name: str, workload: Workload, window: FixedRollouts, model: PreTrainedModel, common: dict[str, Any]
) -> RolloutSFTTrainer:
    args = RolloutSFTConfig(**common, global_max_length=workload.packing_length, reference_fraction=1.0, **OURS[name])
    trainer = RolloutSFTTrainer(
        model=model,
        args=args,
        processing_class=build_digits_tokenizer(),
        train_dataset=window,
        target_builder=window,
        rollout_backend=NoRollouts(),
    )
    trainer.pop_callback(LogLineCallback)
    return trainer


def of_trl(
    name: str, workload: Workload, window: FixedRollouts, model: PreTrainedModel, common: dict[str, Any]
) -> SFTTrainer:
    dataset, options = as_dataset(window.segments), {"max_length": None, **OF_TRL[name]}
    if name == BFD:
        # Given the window alone, and as many micro-steps as that makes packs, `bfd` trains the same step.
        options["max_length"] = workload.packing_length
        packs = len(trl.pack_dataset(dataset, workload.packing_length, "bfd"))
        common = {**common, "per_device_train_batch_size": 1, "gradient_accumulation_steps": packs}
    else:
        options["dataset_kwargs"] = {"skip_prepare_dataset": True}
    return SFTTrainer(
        model=model,
        args=SFTConfig(**common, **options),
        train_dataset=dataset,
        processing_class=build_digits_tokenizer(),
    )


def attention_of(device: torch.device) -> str:
    """Names the attention that TRL's trainer gets; `rollout_sft` chooses its own."""
    if device.type == "cuda":
        from transformers.utils import is_flash_attn_2_available

        if is_flash_attn_2_available():
            return "flash_attention_2"
    return "sdpa"


@contextlib.contextmanager
def compact_logits():
    """Lets TRL project only the supervised positions, as it does where Triton runs; the kernel stays the CPU's."""
    before = trl_utils._use_triton
    trl_utils._use_triton = lambda device: True
    try:
        yield
    finally:
        trl_utils._use_triton = before


def quiet() -> None:
    warnings.simplefilter("ignore")
    for name in ("transformers", "trl", "accelerate", "rollout_sft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import datasets

    datasets.disable_progress_bars()
