"""Runs the stages of a configuration one after the other: `accelerate launch -m rollout_sft.train --config x.yaml`.

Each stage evaluates, trains, evaluates again, and writes to its folder: the model and tokenizer, `log.jsonl`,
`summary.json` and `packs.png` (how the last window was packed).
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rollout_sft.checkpoint.atomic_files import write_atomically
from rollout_sft.checkpoint.manifest import last_finished_checkpoint
from rollout_sft.checkpoint.settings import end_was_moved
from rollout_sft.config.run import load_run
from rollout_sft.config.sections import StageConfig
from rollout_sft.data.loading import load_dataset
from rollout_sft.model.loading import load_model, load_tokenizer
from rollout_sft.ranks.distributed import entangled, leave_together, together
from rollout_sft.reporting.summary import draw_packs, print_table, summarise
from rollout_sft.trainer import RolloutSFTTrainer

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
    try:
        stages = load_run(path)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    logging.basicConfig(format="%(message)s")
    # What was chosen and measured (attention, leak probe, fill) is said once, by the first process.
    logging.getLogger("rollout_sft").setLevel(logging.INFO if stages[0].training.should_log else logging.WARNING)
    columns: list[tuple[str, dict[str, float]]] = []
    weights: str | None = None
    for stage in stages:
        if weights is not None:
            tokenizer = stage.model.tokenizer_name_or_path or weights
            stage = replace(
                stage,
                model=replace(stage.model, model_name_or_path=weights, config=None, tokenizer_name_or_path=tokenizer),
            )
        columns.append((stage.name, run_stage(stage)))
        weights = stage.training.output_dir
        if stage.training.should_log:
            print_table(columns, f"{Path(path).name}, {len(columns)} of {len(stages)} stages")


def run_stage(stage: StageConfig) -> dict[str, float]:
    """
    Trains one stage, or finds it finished when resuming.

    Args:
        stage (`StageConfig`):
            The model, the data and the arguments of the training.

    Returns:
        `dict[str, float]`: the numbers of its column in the table.
    """
    args = stage.training
    folder = Path(str(args.output_dir))
    summary = folder / SUMMARY_FILE
    resume = args.resume_from_checkpoint
    if resume and summary.is_file() and not end_was_moved(args):
        finished: dict[str, float] = json.loads(summary.read_text(encoding="utf-8"))
        return finished
    if resume is True:
        # A stage that has not saved yet starts from its beginning.
        resume = last_finished_checkpoint(folder)
    tokenizer = load_tokenizer(stage.model)
    load = partial(load_dataset, seed=args.seed, require_objects=args.target_builder == "objects")
    trainer = RolloutSFTTrainer(
        model=load_model(stage.model, tokenizer, seed=args.seed),
        args=args,
        processing_class=tokenizer,
        train_dataset=load(stage.train, tokenizer, key="data.train"),
        eval_dataset=load(stage.eval, tokenizer, key="data.eval") if stage.eval else None,
    )
    before = trainer.evaluate() if stage.eval else {}
    trainer.train(resume_from_checkpoint=resume)
    after = trainer.evaluate() if stage.eval else {}
    numbers = summarise(trainer.state.log_history, before, after)

    def write() -> None:
        with entangled(trainer.writes_in_collectives()):
            trainer.save_model()
        _draw(trainer, stage)
        if trainer.is_world_process_zero():
            write_atomically(summary, json.dumps(numbers, indent=2) + "\n")

    together(write, share=lambda _: None)
    trainer.generation.close()
    trainer.accelerator.wait_for_everyone()
    return numbers


def _draw(trainer: RolloutSFTTrainer, stage: StageConfig) -> None:
    args = stage.training
    folder = Path(str(args.output_dir))
    if args.packing and trainer.last_window and trainer.is_world_process_zero():
        scope = args.post_rollout_pack_scope
        title = f"The last window of stage {stage.name}: scope {scope}"
        draw_packs(trainer.last_window, args.packing_length, folder / "packs.png", title)


if __name__ == "__main__":
    main()
    leave_together()
