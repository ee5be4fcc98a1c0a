"""Evaluates by rollouts: the live model answers samples and the target builder scores the answers.

Nothing is packed, and no state of the training is touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from rollout_sft.data.samples import Sample, read_id, read_prompt
from rollout_sft.ranks.distributed import together
from rollout_sft.reporting.metrics import Counters, Ratios
from rollout_sft.rollouts.base import Rollout, RolloutRequest
from rollout_sft.step.seeds import derive_seed

if TYPE_CHECKING:
    from rollout_sft.trainer import RolloutSFTTrainer


def evaluate_rollouts(trainer: RolloutSFTTrainer, dataloader: DataLoader[Any], prefix: str) -> EvalLoopOutput:
    """
    Answers and scores every sample once; every rank calls it at the same point, and all raise when one fails.

    Args:
        trainer (`RolloutSFTTrainer`):
            Gives the backend and the target builder.
        dataloader (`DataLoader`):
            This rank's batches; all ranks have the same number of them.
        prefix (`str`):
            Metrics are `{prefix}_rollout/f1` and so on.

    Returns:
        `EvalLoopOutput`: the metrics over the samples of all ranks.
    """
    trainer.callback_handler.eval_dataloader = dataloader
    totals, samples = Ratios(), 0
    for scores in _scores_of_batches(trainer, dataloader):
        for counters in scores:
            totals.add(counters)
        samples += len(scores)
        trainer.control = trainer.callback_handler.on_prediction_step(trainer.args, trainer.state, trainer.control)
    if not samples:
        raise ValueError("the evaluation data set is empty, so there is nothing to report; check data.eval.")
    metrics = {f"{prefix}_{name}": value for name, value in totals.values().items()}
    return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=samples)


def answer_samples(trainer: RolloutSFTTrainer, samples: Sequence[Sample]) -> list[Rollout]:
    """Answers samples by rollouts that are seeded by the samples' ids, so no batch size or rank changes a score."""
    requests = [
        RolloutRequest(prompt_ids=read_prompt(s), seed=derive_seed("eval", trainer.args.seed, read_id(s, i)))
        for i, s in enumerate(samples)
    ]
    trainer.generation.sync(windows=0)
    return trainer.generation.evaluation.generate(requests)


def _scores_of_batches(trainer: RolloutSFTTrainer, dataloader: DataLoader[Any]) -> Iterator[list[Counters]]:
    """Yields, for each batch, the scores of its samples on all ranks."""
    with torch.random.fork_rng(devices=[]):  # a data loader draws from the generator that dropout uses
        batches = iter(dataloader)

        def score_next() -> list[Counters] | None:
            batch = next(batches, None)
            if batch is None:
                return None
            rollouts = answer_samples(trainer, batch.samples)
            return [trainer.target_builder.score(s, r) for s, r in zip(batch.samples, rollouts, strict=True)]

        while (scores := together(score_next, share=lambda _: None)[0]) is not None:
            yield trainer.accelerator.gather_for_metrics(scores, use_gather_object=True)
