"""Checks a configuration before anything trains: `python -m rollout_sft.check --config x.yaml`.

Prints one page per stage: what the configuration says, the data and their longest prompt, the model, its attention and
the leak probe, the memory of the carry buffer, a batch size that fills the packs. Writes nothing. Ends with status 2 if
the run would fail.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from packsched import advise
from rollout_sft.checks.unsupported import check_best_metric, check_scheduler
from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.config.run import load_run
from rollout_sft.config.sections import StageConfig
from rollout_sft.config.shorten import printable
from rollout_sft.findings import find_in_data, find_missing_end, longest_rollout
from rollout_sft.lengths import Lengths, measure, samples
from rollout_sft.output_folder import find_folder_problems, find_start
from rollout_sft.overview import carry_buffer_fact, data_facts, stage_facts, step_facts
from rollout_sft.parts import Parts, check_files, compare_stage, load_parts
from rollout_sft.reporting.pages import print_page
from rollout_sft.rollouts.base import Rollout, RolloutRequest, StreamedRollouts
from rollout_sft.rollouts.endings import ended_counters
from rollout_sft.rollouts.vllm import INSTALL
from rollout_sft.trainer import RolloutSFTTrainer
from rollout_sft.user_errors import STATUS, message_alone


class NoRollouts:
    """
    A rollout backend that never generates, so that no engine starts.

    Args:
        name (`str`):
            The backend that it stands for, in messages.
    """

    counters: dict[str, tuple[float, float]] = {}  # noqa: RUF012

    def __init__(self, name: str):
        self.name = name

    def generate(self, requests: Sequence[RolloutRequest]) -> list[Rollout]:
        """Refuses."""
        raise AssertionError("a check generates nothing")


class NoStream(NoRollouts):
    """Stands for a backend that hands out responses while others are generated."""

    def begin(self, requests: Sequence[RolloutRequest]) -> StreamedRollouts:
        """Refuses."""
        raise AssertionError("a check generates nothing")


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Prints the pages.

    Args:
        arguments (`Sequence[str]`, *optional*):
            The command line; its only argument is `--config`.
    """
    parser = argparse.ArgumentParser(prog="rollout_sft.check", description="Checks a configuration; trains nothing.")
    parser.add_argument("--config", required=True, help="YAML file; see the README")
    path = parser.parse_args(arguments).config
    with message_alone(path):
        stages = load_run(path)
        unset_hf_deepspeed_config()  # or stage 3 would partition the weights over this one process
        check_files(stages)
        for stage in stages:
            check_scheduler(stage.training)
        problems = list(find_folder_problems(stages))
        knows_model = True
        for number, stage in enumerate(stages, 1):
            if number > 1 and knows_model:
                stage = stage.after(str(stages[number - 2].training.output_dir))
            title = f"{Path(path).name}, stage {number} of {len(stages)}"
            problems += _check_stage(stage, title, knows_model=knows_model)
            knows_model = knows_model and find_start(stage.training).numbers is not None
    for problem in problems:
        print(f"problem: {printable(problem)}", file=sys.stderr)
    if problems:
        raise SystemExit(STATUS)
    try:
        print("No problem found. Nothing was trained.", flush=True)
    except BrokenPipeError:  # the reader of the pages has left, as `head` does; Python would say so at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _check_stage(stage: StageConfig, title: str, *, knows_model: bool) -> list[str]:
    """Prints the page of a stage, with its model where it is there already; returns what would fail."""
    args = stage.training
    parts = load_parts(stage)
    lengths = measure(parts, needs_references=args.reference_fraction > 0)
    model: nn.Module | None = None
    changes: list[str] = []
    if knows_model:
        model = parts.load_model()
        changes += _find_changes(stage, parts, model)
        with tempfile.TemporaryDirectory() as folder:  # a trainer makes its output folder
            trainer = RolloutSFTTrainer(
                model=model,
                args=replace(
                    args, output_dir=folder, push_to_hub=False, deepspeed=None
                ),  # a hub would get a repository
                processing_class=parts.tokenizer,
                image_processor=parts.image_processor,
                target_builder=parts.target_builder,
                rollout_backend=_stand_in(args),
                train_dataset=parts.train,
                eval_dataset=parts.eval,
            )
            facts = stage_facts(stage, parts, trainer, trainer.probe())
    else:  # its model is what the stage before it will have trained
        facts = {
            "model": "the weights of the stage before",
            **data_facts(stage, parts),
            **step_facts(args, lengths.total),
        }
    facts |= length_facts(args, lengths)
    findings = [*find_in_data(args, lengths, model), *find_missing_end(lengths)]
    if warnings := [finding.message for finding in findings if finding.severity == "warning"]:
        facts["warning"] = "\n".join(warnings)
    print_page(f"{title}: {stage.name}", facts)
    wrong = [finding.message for finding in findings if finding.severity != "warning"]
    problems = [*changes, *_find_missing_vllm(args), *wrong, *_find_unknown_metric(args, parts)]
    return [f"stage {stage.name}: {problem}" for problem in problems]


def _find_changes(stage: StageConfig, parts: Parts, model: Any) -> Iterator[str]:
    """Yields what a resume would refuse."""
    try:
        compare_stage(stage, parts, model, find_start(stage.training))
    except ValueError as error:
        yield str(error)


def length_facts(args: RolloutSFTConfig, lengths: Lengths) -> dict[str, str]:
    """Returns what the lengths say: whether the longest rollout fits, the carry buffer's memory, a batch size."""
    seen = "" if lengths.prompts == lengths.total else f" (of the first {lengths.prompts:,} samples)"
    longest = longest_rollout(args, lengths)
    rollout = f"; with max_new_tokens {args.decoding.max_new_tokens:,} up to {longest:,}"
    facts = {
        "longest prompt": f"{lengths.longest:,} tokens, sample {lengths.longest_id!r}{seen}"
        f"{rollout if args.reference_fraction < 1 else ''}; global_max_length is {args.packing_length:,}"
    }
    if lengths.references:
        mean = sum(lengths.references) / len(lengths.references)
        facts["reference answers"] = (
            f"segments of {mean:,.0f} tokens on average, the longest {max(lengths.references):,} (from "
            f"{len(lengths.references):,} samples)"
        )
    facts["carry buffer"] = carry_buffer_fact(args, min(longest, args.packing_length))
    if args.packing and args.post_rollout_pack_scope != "micro":
        facts["batch size"] = _batch_size(args, lengths)
    return facts


def _stand_in(args: RolloutSFTConfig) -> NoRollouts:
    streams = args.rollout_backend == "vllm" and args.vllm.mode == "server"
    return (NoStream if streams else NoRollouts)(f"rollout_backend {args.rollout_backend}")


def _find_missing_vllm(args: RolloutSFTConfig) -> Iterator[str]:
    """Yields that vLLM is missing, where training would say so itself."""
    if args.rollout_backend == "vllm" and args.vllm.mode == "colocate" and find_spec("vllm") is None:
        yield f"rollout_matching.rollout_backend is vllm, but vLLM is not installed. {INSTALL}"


def _find_unknown_metric(args: RolloutSFTConfig, parts: Parts) -> Iterator[str]:
    """Yields that evaluation will not report `metric_for_best_model`, as the scores of an empty response show."""
    if args.metric_for_best_model is None or parts.eval is None:
        return
    nothing = Rollout(response_ids=[], truncated=True)
    names = {} if args.end_rollouts == "never" else ended_counters([nothing], 1)
    try:
        names |= parts.target_builder.score(next(samples(parts.eval)), nothing)
    except Exception:  # an evaluation says what is wrong, with a response that a model gave
        return
    try:
        check_best_metric({f"eval_{name}": 0.0 for name in names}, args)
    except ValueError as error:
        yield str(error)


def _batch_size(args: RolloutSFTConfig, lengths: Lengths) -> str:
    fitting = [length for length in lengths.references if length <= args.packing_length]
    if not fitting:
        return "no advice before the first rollouts; the run gives it after the first window"
    advice = advise(fitting, args.packing_length, args.gradient_accumulation_steps, promise=False)
    return (
        f"per_device_train_batch_size {advice.batch_size} would fill the packs to {advice.fill:.0%} if all segments "
        f"were like the reference answers (now {args.per_device_train_batch_size}); the run repeats this with its "
        "rollouts"
    )


if __name__ == "__main__":
    main()
