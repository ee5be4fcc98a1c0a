"""Runs the stages of a configuration one after the other: `python -m rollout_sft.train --config x.yaml`.

Each stage says what it is about to do, evaluates, trains, evaluates again, and writes to its folder: the model and
tokenizer, `log.jsonl`, `summary.json`, `curves.png` and `packs.png` (how the last window was packed).
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rollout_sft.checkpoint.atomic_files import write_atomically
from rollout_sft.checkpoint.manifest import last_finished_checkpoint
from rollout_sft.checkpoint.settings import end_was_moved
from rollout_sft.checks.unsupported import check_best_metric, check_scheduler
from rollout_sft.config.run import load_run
from rollout_sft.config.sections import StageConfig
from rollout_sft.output_folder import check_output_folders
from rollout_sft.overview import stage_facts
from rollout_sft.parts import check_files, load_parts
from rollout_sft.ranks.distributed import entangled, leave_together, together
from rollout_sft.reporting.curves import draw_curves
from rollout_sft.reporting.pages import print_files, print_page
from rollout_sft.reporting.summary import Numbers, draw_packs, print_table, summarise
from rollout_sft.trainer import RolloutSFTTrainer
from rollout_sft.user_errors import message_alone

SUMMARY_FILE = "summary.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Trains the stages of the configuration and prints a table.

    Args:
        arguments (`Sequence[str]`, *optional*):
            The command line; its only argument is `--config`.
    """
    parser = argparse.ArgumentParser(prog="rollout_sft.train", description="Rollout-matching SFT, packed.")
    parser.add_argument("--config", required=True, help="YAML file; see the README")
    path = parser.parse_args(arguments).config
    with message_alone(path):
        _run(path)


def _run(path: str) -> None:
    stages = load_run(path)
    check_files(stages)
    check_output_folders(stages)
    for stage in stages:
        check_scheduler(stage.training)
    logging.basicConfig(format="%(message)s")
    # What was chosen and measured (attention, leak probe, fill) is said once, by the first process.
    should_log = stages[0].training.should_log
    logging.getLogger("rollout_sft").setLevel(logging.INFO if should_log else logging.WARNING)
    columns: list[tuple[str, Numbers]] = []
    weights: str | None = None
    for number, stage in enumerate(stages, 1):
        if weights is not None:
            tokenizer = stage.model.tokenizer_name_or_path or weights
            stage = replace(
                stage,
                model=replace(stage.model, model_name_or_path=weights, config=None, tokenizer_name_or_path=tokenizer),
            )
        title = f"{Path(path).name}, stage {number} of {len(stages)}: {stage.name}"
        columns.append((stage.name, run_stage(stage, title)))
        weights = stage.training.output_dir
        if should_log:
            print_table(columns, f"{Path(path).name}, {len(columns)} of {len(stages)} stages")
    if should_log:
        print_files([Path(str(stage.training.output_dir)) for stage in stages])


def run_stage(stage: StageConfig, title: str | None = None) -> Numbers:
    """
    Trains one stage, or finds it finished when resuming.

    Args:
        stage (`StageConfig`):
            The model, the data and the arguments of the training.
        title (`str`, *optional*):
            The title of the page that says what it is about to do; the stage's name when not given.

    Returns:
        `Numbers`: the numbers of its column in the table.
    """
    args = stage.training
    folder = Path(str(args.output_dir))
    summary = folder / SUMMARY_FILE
    resume = args.resume_from_checkpoint
    if resume and summary.is_file() and not end_was_moved(args):
        finished: Numbers = json.loads(summary.read_text(encoding="utf-8"))
        return finished
    if resume is True:
        # A stage that has not saved yet starts from its beginning.
        resume = last_finished_checkpoint(folder)
    parts, _ = together(lambda: load_parts(stage), share=lambda _: None)
    trainer = RolloutSFTTrainer(
        model=parts.load_model(),
        args=args,
        processing_class=parts.tokenizer,
        image_processor=parts.image_processor,
        target_builder=parts.target_builder,
        train_dataset=parts.train,
        eval_dataset=parts.eval,
    )
    report = trainer.probe()
    if trainer.is_world_process_zero():
        print_page(title or stage.name, stage_facts(stage, parts, trainer, report))
    before = trainer.evaluate() if stage.eval else {}
    check_best_metric(before, args)
    trainer.train(resume_from_checkpoint=resume)
    after = trainer.evaluate() if stage.eval else {}
    numbers = summarise(trainer.state.log_history, before, after)

    def write() -> None:
        with entangled(trainer.writes_in_collectives()):
            trainer.save_model()
        _draw(trainer, stage, before)
        if trainer.is_world_process_zero():
            write_atomically(summary, json.dumps(numbers, indent=2) + "\n")

    together(write, share=lambda _: None)
    trainer.generation.close()
    trainer.accelerator.wait_for_everyone()
    return numbers


def _draw(trainer: RolloutSFTTrainer, stage: StageConfig, before: dict[str, float]) -> None:
    args = stage.training
    folder = Path(str(args.output_dir))
    if not trainer.is_world_process_zero():
        return
    # Training begins with an empty log, without the evaluation before it.
    draw_curves([{**before, "step": 0}, *trainer.state.log_history], folder / "curves.png", f"Stage {stage.name}")
    if args.packing and trainer.last_window:
        title = f"The last window of stage {stage.name}: scope {args.post_rollout_pack_scope}"
        draw_packs(trainer.last_window, args.packing_length, folder / "packs.png", title)


if __name__ == "__main__":
    main()
    leave_together()
