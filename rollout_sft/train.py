"""Runs the stages of a configuration one after the other: `python -m rollout_sft.train --config x.yaml`.

Each stage says what it is about to do, evaluates, trains, evaluates again, and writes to its folder: the model and
tokenizer, `log.jsonl`, `summary.json`, `curves.png` and `packs.png` (how the last window was packed).
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.trainer_utils import has_length

from rollout_sft.checkpoint.manifest import last_finished_checkpoint
from rollout_sft.checks.unsupported import check_best_metric, check_scheduler
from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.config.deepspeed import select_deepspeed
from rollout_sft.config.run import load_run
from rollout_sft.config.sections import StageConfig
from rollout_sft.findings import find_in_data, report_findings
from rollout_sft.lengths import REFERENCES, measure
from rollout_sft.output_folder import Start, check_output_folders, find_start, write_summary
from rollout_sft.overview import stage_facts
from rollout_sft.parts import check_files, compare_stage, load_parts
from rollout_sft.ranks.distributed import entangled, leave_together, together
from rollout_sft.reporting.curves import draw_curves
from rollout_sft.reporting.pages import print_files, print_page
from rollout_sft.reporting.summary import Numbers, draw_packs, print_table, summarise
from rollout_sft.trainer import RolloutSFTTrainer
from rollout_sft.user_errors import message_alone

logger = logging.getLogger(__name__)

INTERRUPTED = 130
"""The exit status of a command that Ctrl-C ended, as shells give it."""


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
    for number, stage in enumerate(stages, 1):
        if columns:
            stage = stage.after(str(stages[number - 2].training.output_dir))
        title = f"{Path(path).name}, stage {number} of {len(stages)}: {stage.name}"
        try:
            columns.append((stage.name, run_stage(stage, title)))
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a launcher sends it a second time
            if should_log:
                print(how_to_resume(stage.training, path), file=sys.stderr, flush=True)
            raise SystemExit(INTERRUPTED) from None
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
    start = find_start(args)
    select_deepspeed(args)
    parts, _ = together(lambda: load_parts(stage), share=lambda _: None)
    model = parts.load_model()
    comparison = compare_stage(stage, parts, model, start)
    if start.numbers is not None:
        if args.should_log:
            logger.warning(finished_line(stage, start))
        return start.numbers
    trainer = RolloutSFTTrainer(
        model=model,
        args=args,
        processing_class=parts.tokenizer,
        image_processor=parts.image_processor,
        target_builder=parts.target_builder,
        train_dataset=parts.train,
        eval_dataset=parts.eval,
    )
    trainer.comparison = comparison
    if has_length(parts.train):  # a stream may not be read twice

        def look() -> None:
            lengths = measure(parts, prompts=REFERENCES, needs_references=args.reference_fraction > 0)
            report_findings(find_in_data(args, lengths, trainer.accelerator.unwrap_model(trainer.model)))

        together(look, share=lambda _: None)
    probed = trainer.probe()
    if trainer.is_world_process_zero():
        print_page(title or stage.name, stage_facts(stage, parts, trainer, probed))
    if stage.eval and not start.source:
        check_best_metric(trainer.evaluate(), args)
    trainer.train(resume_from_checkpoint=start.source)
    after = trainer.evaluate() if stage.eval else {}
    # The log of a resumed run begins with the evaluation before the first step.
    before = next((entry for entry in trainer.state.log_history if not entry["step"]), {})
    numbers = summarise(trainer.state.log_history, before, after)

    def write() -> None:
        with entangled(trainer.writes_in_collectives()):
            trainer.save_model()
        _draw(trainer, stage)
        if trainer.is_world_process_zero():
            write_summary(args, numbers, trainer.trained_with)

    together(write, share=lambda _: None)
    trainer.generation.close()
    trainer.accelerator.wait_for_everyone()
    return numbers


def finished_line(stage: StageConfig, start: Start) -> str:
    """Says that nothing is left to train in a finished stage, and how it could go on."""
    unknown = "" if start.saved else " An earlier version finished it, so its settings were not compared."
    return (
        f"Stage {stage.name} is finished in {start.source}, and nothing was trained.{unknown} To go on raise "
        "training.max_steps (or num_train_epochs); to train anew name another training.output_dir."
    )


def how_to_resume(args: RolloutSFTConfig, path: str) -> str:
    """Says in one line how an interrupted stage goes on."""
    checkpoint = last_finished_checkpoint(str(args.output_dir))
    if checkpoint is None:
        return f"Interrupted before the first checkpoint of {args.output_dir}: nothing can be resumed."
    key = (
        "" if args.resume_from_checkpoint is True else f"set `resume_from_checkpoint: true` in training of {path} and "
    )
    return f"Interrupted. To go on from {checkpoint}, {key}start the same command again."


def _draw(trainer: RolloutSFTTrainer, stage: StageConfig) -> None:
    args = stage.training
    folder = Path(str(args.output_dir))
    if not trainer.is_world_process_zero():
        return
    draw_curves(trainer.state.log_history, folder / "curves.png", f"Stage {stage.name}")
    if args.packing and trainer.last_window:
        title = f"The last window of stage {stage.name}: scope {args.post_rollout_pack_scope}"
        draw_packs(trainer.last_window, args.packing_length, folder / "packs.png", title)


if __name__ == "__main__":
    main()
    leave_together()
