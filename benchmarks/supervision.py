"""What stage 2 learns from: the requirement's supervision, a mixture with references, and a correct expert.

    OMP_NUM_THREADS=1 python -m benchmarks.supervision --seconds 60 --seeds 0 1

For each seed stage 1 of the quickstart is trained once; from its weights every variant of stage 2 trains for the same
number of seconds of processor time (rollouts, building and training; evaluation not counted), so that a busy machine
changes nothing, at a constant learning rate. Writes
`benchmarks/results/supervision.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import replace
from pathlib import Path

import torch
import transformers
import yaml
from transformers import TrainerCallback

from rollout_sft.config.run import StageConfig, load_run
from rollout_sft.data.loading import load_dataset
from rollout_sft.model.loading import load_model, load_tokenizer
from rollout_sft.train import run_stage
from rollout_sft.trainer import RolloutSFTTrainer

ROOT = Path(__file__).parents[1]
VARIANTS = {
    "requirement": {"reference_fraction": 0.0, "prefix_supervision": "coordinates"},
    "mixture, half references": {"reference_fraction": 0.5, "prefix_supervision": "coordinates"},
    "expert": {"reference_fraction": 0.0, "prefix_supervision": "expert"},
    "expert and half references": {"reference_fraction": 0.5, "prefix_supervision": "expert"},
}
COLUMNS = {
    "F1": "eval_rollout/f1",
    "parse rate": "eval_rollout/parse_rate",
    "false pos.": "eval_rollout/false_positives",
}


class Budget(TrainerCallback):
    """Evaluates at the middle and at the end of so many seconds of processor time, then stops."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.start = self.paused = 0.0
        self.evaluated = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        self.paused = time.process_time()
        used = self.paused - self.start
        if used >= self.seconds * (self.evaluated + 1) / 2:
            self.evaluated += 1
            control.should_evaluate = True
        control.should_training_stop = used >= self.seconds

    def on_evaluate(self, args, state, control, **kwargs):
        self.start += time.process_time() - self.paused


def stages_for(seed: int, folder: Path, variant: dict[str, object], learning_rate: float) -> list[StageConfig]:
    """The quickstart's stages with this seed, a constant learning rate in stage 2, and the variant."""
    document = {
        "extends": str(ROOT / "configs" / "quickstart.yaml"),
        "training": {"seed": seed, "output_dir": str(folder)},
    }
    path = folder / "run.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(document))
    first, second = load_run(path)
    config = second.training
    for name, value in variant.items():
        setattr(config, name, value)
    config.learning_rate = learning_rate
    config.lr_scheduler_type = transformers.SchedulerType.CONSTANT_WITH_WARMUP
    config.lr_scheduler_kwargs = {}
    return [first, replace(second, train=replace(second.train, size=16 * 2000))]


def stage_two(stage: StageConfig, weights: str, seconds: float) -> list[dict[str, float]]:
    """Evaluations at the start, in the middle and at the end."""
    spec = replace(stage.model, model_name_or_path=weights, config=None)
    tokenizer = load_tokenizer(spec)
    trainer = RolloutSFTTrainer(
        model=load_model(spec, tokenizer, seed=stage.training.seed),
        args=stage.training,
        processing_class=tokenizer,
        train_dataset=load_dataset(stage.train, tokenizer, seed=stage.training.seed),
        eval_dataset=load_dataset(stage.eval, tokenizer, seed=stage.training.seed),
        callbacks=[Budget(seconds)],
    )
    start = trainer.evaluate()
    trainer.train()
    evaluations = [start, *(e for e in trainer.state.log_history if "eval_rollout/f1" in e)]
    return [{**{k: e[v] for k, v in COLUMNS.items()}, "step": trainer.state.global_step} for e in evaluations]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "supervision")
    args = parser.parse_args()
    rows = []
    for seed in args.seeds:
        for name, variant in VARIANTS.items():
            folder = args.folder / f"seed{seed}" / name.replace(", ", "-").replace(" ", "-")
            first, second = stages_for(seed, folder, variant, args.learning_rate)
            shared = args.folder / f"seed{seed}" / "stage1"
            first.training.output_dir = str(shared)
            first.training.resume_from_checkpoint = True  # the first variant trains it, the others find it finished
            run_stage(first)
            evaluations = stage_two(second, str(shared), args.seconds)
            rows.append({"seed": seed, "variant": name, "evaluations": evaluations})
            (folder / "evaluations.json").write_text(json.dumps(rows[-1], indent=2))
    results = ROOT / "benchmarks" / "results" / "supervision.md"
    results.parent.mkdir(exist_ok=True)
    results.write_text(report(rows, args))
    print(results.read_text())


def report(rows: list[dict], args: argparse.Namespace) -> str:
    """The table, with machine and versions."""
    lines = [
        "# Stage 2 by supervision",
        "",
        f"`python -m benchmarks.supervision --seconds {args.seconds:g} --learning-rate {args.learning_rate:g}`",
        "",
        f"{os.cpu_count()} cores, {platform.machine()}, {torch.get_num_threads()} threads; Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}.",
        "Start -> middle -> end of the same number of seconds of processor time; same start per seed.",
        "",
        "| seed | supervision | steps | F1 | parse rate | false positives per sample |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [" -> ".join(f"{e[name]:.3f}" for e in row["evaluations"]) for name in COLUMNS]
        lines.append(
            f"| {row['seed']} | {row['variant']} | {row['evaluations'][-1]['step']} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
