"""Trains on answers that a Python function accepts: the best accepted rollout so far, else the reference answer.

    python -m rollout_sft.train --config configs/verified-answers.yaml

The prompt is a number, `37=`, and any sum of two numbers that makes it is right: `30+7`, `18+19`. No reference answer
can list them all, so `check` computes what the model wrote. For a task of your own replace `check`, `load_sums` and the
tokenizer.

The end token: `Rollout.response_ids` come without it, also where the model wrote it. A target builder appends it and
trains it, or the model never learns to stop. An answer that was cut off (`rollout.truncated`) has no end, and is not
accepted.
"""

from __future__ import annotations

import random
import re
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rollout_sft import Counters, Rollout, RolloutSFTConfig, Sample, Segment, Target
from rollout_sft.targets import find_end_tokens


def check(sample: Sample, answer: str) -> float:
    """Returns how good an answer is: 0 is wrong, and the shorter a right answer, the better."""
    parts = re.fullmatch(r"([1-9]\d*)\+([1-9]\d*)", answer)
    right = parts is not None and int(parts[1]) + int(parts[2]) == sample["number"]
    return 1 / len(answer) if right else 0.0


class VerifiedAnswers:
    """
    A target builder for tasks whose answers a function can check.

    Remembers the best accepted answer of each sample in this process. A run that resumes from a checkpoint has
    forgotten them and begins again with the reference answers.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, config: RolloutSFTConfig):
        self.tokenizer = tokenizer
        self.end_id = find_end_tokens(tokenizer, config).trained
        self.best: dict[str, tuple[float, list[int]]] = {}

    def build(self, sample: Sample, rollout: Rollout) -> Target:
        """Trains the best answer that was accepted so far, or the reference if there is none."""
        score = self._score(sample, rollout)
        known, answer_ids = self.best.get(sample["id"], (0.0, []))
        if score > known:
            known, answer_ids = self.best[sample["id"]] = score, list(rollout.response_ids)
        counters = {**self._count(score), "answers/from_reference": (float(not known), 1.0)}
        return self._target(sample, answer_ids or self._reference(sample), counters)

    def build_reference(self, sample: Sample) -> Target:
        """Trains the reference answer."""
        return self._target(sample, self._reference(sample), {})

    def score(self, sample: Sample, rollout: Rollout) -> Counters:
        """Returns what evaluation reports; the names are this builder's own."""
        return self._count(self._score(sample, rollout))

    def _score(self, sample: Sample, rollout: Rollout) -> float:
        return 0.0 if rollout.truncated else check(sample, self.tokenizer.decode(rollout.response_ids))

    def _count(self, score: float) -> Counters:
        return {"answers/accepted": (float(score > 0), 1.0)}

    def _reference(self, sample: Sample) -> list[int]:
        return self.tokenizer(sample["reference"], add_special_tokens=False)["input_ids"]

    def _target(self, sample: Sample, answer_ids: list[int], counters: Counters) -> Target:
        """Makes the segment: the prompt is context, the answer and the end token are trained."""
        prompt = list(sample["prompt_ids"])
        ids = [*prompt, *answer_ids, self.end_id]
        weights = [0.0] * (len(prompt) - 1) + [1.0] * (len(answer_ids) + 1) + [0.0]
        segment = Segment.from_lists(ids, [*ids[1:], 0], weights, sample_id=sample["id"])  # position t predicts t + 1
        return Target(segment=segment, counters=counters)


def load_sums(tokenizer: Any, split: str, size: int, seed: int) -> list[dict[str, Any]]:
    """Makes samples; the configuration names this function as `data.*.source`."""
    draw = random.Random(f"{split} {seed}")
    samples = []
    for i in range(size):
        number = draw.randint(2, 99)
        first = draw.randint(1, number - 1)
        prompt_ids = tokenizer(f"{number}=")["input_ids"]
        reference = f"{first}+{number - first}"
        samples.append({"id": f"{split}-{i}", "prompt_ids": prompt_ids, "number": number, "reference": reference})
    return samples


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Makes a tokenizer of single characters."""
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *"0123456789+="])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d|[+=]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
