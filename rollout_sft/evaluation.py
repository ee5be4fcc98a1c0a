"""Evaluates with rollouts: the live model answers samples and the target builder scores the answers.

Nothing is packed, and the state of the training does not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.data.samples import Sample, read_id, read_images, read_prompt
from rollout_sft.ranks.distributed import together
from rollout_sft.ranks.zero3 import gathered_in_forwards, is_partitioned
from rollout_sft.reporting.metrics import Counters, Ratios, StepMetrics, check_counters
from rollout_sft.reporting.stopwatch import phase
from rollout_sft.rollouts.base import Rollout, RolloutRequest
from rollout_sft.rollouts.check_answers import checked
from rollout_sft.rollouts.endings import ended_counters
from rollout_sft.rollouts.lifecycle import Generation
from rollout_sft.step.seeds import derive_seed
from rollout_sft.targets.base import TargetBuilder
from rollout_sft.targets.notes import naming


class EvaluatingTrainer(Trainer):
    """
    Evaluates by generating and scoring.

    Attributes:
        args (`RolloutSFTConfig`):
            All settings.
        generation ([`~rollout_sft.rollouts.lifecycle.Generation`]):
            Answers samples.
        target_builder ([`~rollout_sft.targets.base.TargetBuilder`]):
            Scores the answers.
        metrics ([`~rollout_sft.reporting.metrics.StepMetrics`]):
            Collects the numbers of the next log line.
    """

    args: RolloutSFTConfig
    generation: Generation
    target_builder: TargetBuilder
    metrics: StepMetrics

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Generates, scores and reports; see `Trainer.evaluate`. Metrics are `{prefix}_rollout/f1` and so on."""
        self.metrics.training_ends()
        with phase("evaluation"), self._ready_to_generate():
            return self._generate_and_score(dataloader, metric_key_prefix)

    def _ready_to_generate(self) -> AbstractContextManager[None]:
        """Prepares a model of DeepSpeed for an evaluation before training, which makes its engine."""
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        if plugin is None or self.deepspeed is not None:
            return nullcontext()
        model = self.accelerator.unwrap_model(self.model)
        if is_partitioned(model):
            return gathered_in_forwards(model, plugin.hf_ds_config.config)
        model.to(self.args.device)  # the engine would do so; Trainer leaves it to it
        return nullcontext()

    def _generate_and_score(self, dataloader: DataLoader[Any], metric_key_prefix: str) -> EvalLoopOutput:
        self.generation.sync()
        self.callback_handler.eval_dataloader = dataloader
        totals, samples = Ratios(), 0
        for scores in self._scores_of_batches(dataloader):
            for counters in scores:
                totals.add(counters)
            samples += len(scores)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        self.generation.sleep()
        if not samples:
            raise ValueError("the evaluation data set is empty, so there is nothing to report; check data.eval.")
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in totals.values().items()}
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=samples)

    def roll_out(self, samples: Sequence[Sample]) -> list[Rollout]:
        """
        Answers samples as evaluation does; every rank calls it at the same point.

        Args:
            samples (`Sequence[Sample]`):
                Samples with `prompt_ids` and `id`. The id seeds the rollout, so no batch size or rank changes a score.

        Returns:
            `list[Rollout]`: one per sample.
        """
        requests = [
            RolloutRequest(
                prompt_ids=read_prompt(s),
                seed=derive_seed("eval", self.args.seed, read_id(s, i)),
                images=read_images(s),
            )
            for i, s in enumerate(samples)
        ]
        self.generation.sync()
        answers = self.generation.evaluation.generate(requests)
        return checked(answers, requests, self.generation.evaluation_limits)

    def _scores_of_batches(self, dataloader: DataLoader[Any]) -> Iterator[list[Counters]]:
        """Yields, for each batch, the scores of its samples on all ranks; all ranks raise when one fails."""
        with torch.random.fork_rng(devices=[]):  # a data loader draws from the generator that dropout uses
            batches = iter(dataloader)

            def score_next() -> list[Counters] | None:
                batch = next(batches, None)
                if batch is None:
                    return None
                rollouts = self.roll_out(batch.samples)
                return [self._score(s, r) for s, r in zip(batch.samples, rollouts, strict=True)]

            while (scores := together(score_next, share=lambda _: None)[0]) is not None:
                yield self.accelerator.gather_for_metrics(scores, use_gather_object=True)

    def _score(self, sample: Sample, rollout: Rollout) -> Counters:
        with naming(self.target_builder, sample):
            scores = check_counters(self.target_builder.score(sample, rollout), "the target builder")
        if self.args.end_rollouts == "never":
            return scores
        return {**scores, **ended_counters([rollout], self.generation.evaluation_limits.max_new_tokens)}
