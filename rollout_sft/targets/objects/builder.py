"""
Lists of objects: strict parse, matching, and what is missing appended to the model's own answer.

- `Y_train` = the longest prefix of the generated *tokens* that ends with the last valid object, then every
  unmatched true object, `]` and the end token.
- Trained on: everything appended, and at the coordinate slots of matched objects the coordinates of their
  truth. With `boundary_supervision` also the choice between another object and the end of the list.
- Everything else has weight 0: it is context the model wrote itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rollout_sft.data.samples import Sample
from rollout_sft.data.truth import TrueObject, read_truth
from rollout_sft.inputs.segment import Segment
from rollout_sft.reporting.metrics import Counters
from rollout_sft.rollouts.base import Rollout
from rollout_sft.targets.base import Target
from rollout_sft.targets.objects.completion import Draft, draft_answer
from rollout_sft.targets.objects.matching import iou_matrix, match_boxes
from rollout_sft.targets.objects.parsing import ParsedAnswer, ParsedObject, parse_answer
from rollout_sft.targets.token_decisions import Decisions, boundary_decision, coordinate_decisions
from rollout_sft.targets.token_text import Speller

COORD = "coord"
"""Index field: positions whose logits are trained towards a coordinate, in the prefix and in the tail."""

BOUNDARY = "boundary"
"""Index field with `boundary_supervision`: positions trained towards "another object" or "the end"."""


class ObjectsTargetBuilder:
    """
    Target builder for answers of the form `[{"desc": str, "bbox_2d": [x1, y1, x2, y2]}, ...]`.

    Reads `sample["objects"]`, a list of mappings with `desc` and `bbox_2d`.

    Args:
        tokenizer (`PreTrainedTokenizerFast`):
            The model's tokenizer; any fast one with an end token that can write JSON.
        iou_threshold (`float`, *optional*, defaults to 0.5):
            A prediction and a truth may be matched from this IoU on, whatever their descriptions. The
            metrics ask for the same IoU and for equal descriptions.
        supervise_desc (`bool`, *optional*, defaults to `True`):
            Whether appended and reference objects train the tokens that hold text of a description.
        boundary_supervision (`bool`, *optional*, defaults to `False`):
            Whether to train, after `[` and after each object of the model's own prefix, the decision to go on
            (while a true object is not matched by an earlier object of the prefix) or to end the list.

    Raises:
        `ValueError`: a tokenizer without a fast backend or without an end token, or a threshold outside (0,
        1].
    """

    def __init__(
        self,
        *,
        tokenizer: Any,
        iou_threshold: float = 0.5,
        supervise_desc: bool = True,
        boundary_supervision: bool = False,
    ):
        if not 0 < iou_threshold <= 1:
            raise ValueError(f"iou_threshold is {iou_threshold}; give a value above 0 and up to 1, such as 0.5.")
        self.speller = Speller(tokenizer)
        self.iou_threshold = iou_threshold
        self.supervise_desc = supervise_desc
        self.boundary_supervision = boundary_supervision

    def build(self, sample: Sample, rollout: Rollout) -> Target:
        """
        Prompt, prefix of the rollout and appended tail as one segment. Costs two decodes of the answer and,
        for each matched object, four short encodings.

        Raises:
            `ValueError`: the sample is malformed, or the tokenizer cannot write its objects.
        """
        prompt_ids, truths, where = _read_sample(sample)
        draft, answer = draft_answer(self.speller, rollout.response_ids, truths, self._match, where)
        plan = self._supervise(draft, truths)
        counters = self._count(answer, rollout, truths)
        counters["rollout/appended"] = (len(truths) - len(draft.pairs), 1)
        counters["rollout/unaligned_slots"] = (plan.unaligned, 4 * len(draft.pairs))
        return Target(segment=self._segment(sample, prompt_ids, draft, plan), counters=counters)

    def build_reference(self, sample: Sample) -> Target:
        """
        Prompt and the full reference answer as one segment; everything behind the prompt is trained.

        Raises:
            `ValueError`: the sample is malformed, or the tokenizer cannot write its objects.
        """
        prompt_ids, truths, where = _read_sample(sample)
        draft, _ = draft_answer(self.speller, [], truths, self._match, where)
        segment = self._segment(sample, prompt_ids, draft, self._supervise(draft, truths))
        return Target(segment=segment, counters={})

    def score(self, sample: Sample, rollout: Rollout) -> Counters:
        """The `rollout/*` counters of one answer; builds no segment."""
        _, truths, _ = _read_sample(sample)
        return self._count(parse_answer(self.speller.spell(rollout.response_ids)[0]), rollout, truths)

    def read_answer(self, rollout: Rollout) -> list[dict[str, Any]]:
        """The valid objects of an answer, in the form of `sample["objects"]`: for pictures and reports."""
        answer = parse_answer(self.speller.spell(rollout.response_ids)[0])
        return [{"desc": found.desc, "bbox_2d": list(found.box)} for found in answer.objects]

    def _supervise(self, draft: Draft, truths: Sequence[TrueObject]) -> _Plan:
        own, appended = draft.answer.objects[: draft.kept], draft.answer.objects[draft.kept :]
        weights = [0.0] * draft.prefix_length + [1.0] * (len(draft.ids) - draft.prefix_length)
        # A straddled token is written anew, but numbers and descriptions in it are still the model's own.
        unsupervised = [span for found in own for span in (found.desc_span, *found.number_spans)]
        if not self.supervise_desc:
            unsupervised += [found.desc_span for found in appended]
        for i in draft.tokens_holding(unsupervised):
            weights[i] = 0.0

        decisions: Decisions = {}
        unaligned = 0
        for i, j in draft.pairs.items():
            numbers = [json.dumps(x) for x in truths[j].box]
            slots, skipped = coordinate_decisions(self.speller, draft.text, draft.ids, draft.ends, own[i], numbers)
            decisions |= slots
            unaligned += skipped
        new = draft.tokens_holding([span for found in appended for span in found.number_spans])
        indices = {COORD: sorted({*decisions, *(i for i in new if weights[i])})}
        if self.boundary_supervision:
            boundaries = {i: t for i, t in self._boundaries(draft, truths).items() if i not in decisions}
            indices[BOUNDARY] = sorted(boundaries)
            decisions |= boundaries
        for i in decisions:
            weights[i] = 1.0
        return _Plan(weights, decisions, indices, unaligned)

    def _boundaries(self, draft: Draft, truths: Sequence[TrueObject]) -> Decisions:
        """The dynamic oracle's choices; the one behind the last kept object belongs to the tail."""
        open_truths = dict.fromkeys(range(len(truths)))
        boundary, floor, separator = draft.answer.body_start or 0, 0, ""
        decisions: Decisions = {}
        for m in range(draft.kept):
            following = next(iter(open_truths), None)
            continuation = "]" if following is None else separator + truths[following].json
            decision = boundary_decision(self.speller, draft.text, draft.ends, boundary, floor, continuation)
            if decision is not None:
                decisions[decision[0]] = decision[1]
            open_truths.pop(draft.pairs.get(m, -1), None)
            found = draft.answer.objects[m]
            boundary, floor, separator = found.span[1], found.content_end, ", "
        return decisions

    def _segment(self, sample: Sample, prompt_ids: list[int], draft: Draft, plan: _Plan) -> Segment:
        """Puts the answer behind the prompt: what is decided about token `i` is trained at `i - 1`."""
        shift = len(prompt_ids) - 1
        input_ids = [*prompt_ids, *draft.ids, self.speller.eos_id]
        targets = [*input_ids[1:], self.speller.eos_id]
        for i, token in plan.decisions.items():
            targets[shift + i] = token
        return Segment.from_lists(
            input_ids,
            targets,
            [*[0.0] * shift, *plan.weights, 1.0, 0.0],
            indices={name: [shift + i for i in tokens] for name, tokens in plan.indices.items()},
            sample_id=str(sample.get("id", "")),
        )

    def _match(
        self, found: Sequence[ParsedObject], truths: Sequence[TrueObject], *, same_desc: bool = False
    ) -> dict[int, int]:
        iou = iou_matrix([f.box for f in found], [t.box for t in truths])
        allowed = iou >= self.iou_threshold
        if same_desc:
            allowed &= np.array([[f.desc == t.desc for t in truths] for f in found], dtype=bool).reshape(iou.shape)
        return match_boxes(iou, allowed)

    def _count(self, answer: ParsedAnswer, rollout: Rollout, truths: Sequence[TrueObject]) -> Counters:
        predicted = len(answer.objects)
        hits = len(self._match(answer.objects, truths, same_desc=True))
        malformed = answer.malformed + (answer.unclosed and not rollout.truncated)
        return {
            "rollout/f1": (2 * hits, predicted + len(truths)),
            "rollout/precision": (hits, predicted),
            "rollout/recall": (hits, len(truths)),
            "rollout/valid_pred_rate": (predicted, predicted + malformed),
            "rollout/parse_rate": (float(answer.complete and not rollout.truncated), 1),
            "rollout/truncation": (float(rollout.truncated), 1),
            "rollout/new_tokens_mean": (len(rollout.response_ids), 1),
            "rollout/matched": (len(self._match(answer.objects, truths)), 1),
            "rollout/false_positives": (predicted - hits, 1),
        }


@dataclass(frozen=True, slots=True)
class _Plan:
    """Supervision over the tokens of a draft: token `i` here is what position `i - 1` predicts."""

    weights: list[float]
    decisions: Decisions
    indices: dict[str, list[int]]
    unaligned: int


def _read_sample(sample: Sample) -> tuple[list[int], list[TrueObject], str]:
    where = f"sample {sample.get('id', '?')!r}"
    for key in ("prompt_ids", "objects"):
        if key not in sample:
            raise ValueError(f"{where} has no {key!r}, only {sorted(sample)}; this target builder needs it.")
    prompt_ids = list(sample["prompt_ids"])
    if not prompt_ids:
        raise ValueError(f"{where}: prompt_ids is empty; the first token of an answer needs one to be predicted from.")
    return prompt_ids, read_truth(sample["objects"], where), where
