"""
Lists of objects: strict parse, matching, and what is missing appended to the model's own answer.

- `Y_train` = the longest prefix of the generated *tokens* that ends with the last valid object, then every
  unmatched true object, `]` and the end token.
- Trained on: everything appended, and inside the model's own answer what
  [`~rollout_sft.targets.objects.prefix`] says: the coordinates of matched objects, or all that a correct expert would
  write next.
- Everything else has weight 0: it is context the model wrote itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rollout_sft.data.samples import Sample
from rollout_sft.data.truth import TrueObject, read_truth
from rollout_sft.inputs.segment import Segment
from rollout_sft.reporting.metrics import Counters
from rollout_sft.rollouts.base import Rollout
from rollout_sft.rollouts.end_tokens import EndTokens, find_end_tokens
from rollout_sft.targets.base import Target
from rollout_sft.targets.objects.completion import Draft, draft_answer
from rollout_sft.targets.objects.matching import iou_matrix, match_boxes
from rollout_sft.targets.objects.parsing import AnswerReader, ParsedAnswer, ParsedObject, parse_answer
from rollout_sft.targets.objects.prefix import PrefixDecisions, coordinate_decisions, expert_decisions
from rollout_sft.targets.objects.spelling import COORD
from rollout_sft.targets.token_text import Speller

PREFIX_SUPERVISION = ("coordinates", "expert")


class ObjectsTargetBuilder:
    """
    Builds targets from answers of the form `[{"desc": str, "bbox_2d": [x1, y1, x2, y2]}, ...]`.

    Reads `sample["objects"]`, a list of mappings with `desc` and `bbox_2d`.

    Args:
        tokenizer (`PreTrainedTokenizerFast`):
            The model's tokenizer; any fast one with an end token that can write JSON.
        iou_threshold (`float`, *optional*, defaults to 0.5):
            A prediction and a truth may be matched from this IoU on, with any descriptions. The
            metrics ask for the same IoU and for equal descriptions.
        supervise_desc (`bool`, *optional*, defaults to `True`):
            Whether the text of descriptions is trained: in appended and reference objects, and by `expert`.
        prefix_supervision (`str`, *optional*, defaults to `"coordinates"`):
            What is trained inside the model's own answer. `coordinates`: the coordinates of matched objects.
            `expert`: also the choice to go on (while a true object is not matched by an earlier object) or to end the
            list, the description of matched objects, and where an object is not matched the description of the next
            true object that no earlier one has matched.
        ensure_ascii (`bool`, *optional*, defaults to `False`):
            Whether truths are written with escapes for all but ASCII.
        end_tokens ([`~rollout_sft.rollouts.end_tokens.EndTokens`], *optional*):
            Those of the run; those of the tokenizer when not given.

    Raises:
        `ValueError`: a tokenizer without a fast backend or without an end token, a threshold outside (0,
        1], or a `prefix_supervision` of another name.
    """

    def __init__(
        self,
        *,
        tokenizer: Any,
        iou_threshold: float = 0.5,
        supervise_desc: bool = True,
        prefix_supervision: str = "coordinates",
        ensure_ascii: bool = False,
        end_tokens: EndTokens | None = None,
    ):
        if not 0 < iou_threshold <= 1:
            raise ValueError(f"iou_threshold is {iou_threshold}; give a value above 0 and up to 1, such as 0.5.")
        if prefix_supervision not in PREFIX_SUPERVISION:
            raise ValueError(
                f"prefix_supervision is {prefix_supervision!r}; give one of {', '.join(PREFIX_SUPERVISION)}."
            )
        self.speller = Speller(tokenizer)
        self.end_tokens = end_tokens or find_end_tokens(tokenizer)
        self.ensure_ascii = ensure_ascii
        self.iou_threshold = iou_threshold
        self.supervise_desc = supervise_desc
        self.prefix_supervision = prefix_supervision

    def build(self, sample: Sample, rollout: Rollout) -> Target:
        """
        Builds one segment from prompt, prefix of the rollout and appended tail. Costs two decodes of the answer
        and, for each of its objects, at most six short encodings.

        Raises:
            `ValueError`: the sample is malformed, or the tokenizer cannot write its objects.
        """
        prompt_ids, truths, where = _read_sample(sample)
        draft, answer = self._draft(rollout.response_ids, truths, where)
        plan = self._supervise(draft, truths)
        counters = self._count(answer, rollout, truths)
        counters["rollout/appended"] = (len(truths) - len(draft.pairs), 1)
        counters["rollout/unaligned_slots"] = (plan.prefix.unaligned, plan.prefix.asked)
        return Target(segment=self._segment(sample, prompt_ids, draft, plan), counters=counters)

    def build_reference(self, sample: Sample) -> Target:
        """
        Builds one segment from the prompt and the full reference answer; everything behind the prompt is trained.

        Raises:
            `ValueError`: the sample is malformed, or the tokenizer cannot write its objects.
        """
        prompt_ids, truths, where = _read_sample(sample)
        draft, _ = self._draft([], truths, where)
        segment = self._segment(sample, prompt_ids, draft, self._supervise(draft, truths))
        return Target(segment=segment, counters={})

    def score(self, sample: Sample, rollout: Rollout) -> Counters:
        """Returns the `rollout/*` counters of one answer; builds no segment."""
        _, truths, _ = _read_sample(sample)
        return self._count(parse_answer(self.speller.spell(rollout.response_ids)[0]), rollout, truths)

    def response_reader(self) -> ObjectsReader:
        """Returns a reader of one response, for `end_rollouts`."""
        return ObjectsReader(self.speller)

    def read_answer(self, rollout: Rollout) -> list[dict[str, Any]]:
        """Returns the valid objects of an answer, in the form of `sample["objects"]`, for pictures and reports."""
        answer = parse_answer(self.speller.spell(rollout.response_ids)[0])
        return [{"desc": found.desc, "bbox_2d": list(found.box)} for found in answer.objects]

    def _draft(
        self, response_ids: Sequence[int], truths: Sequence[TrueObject], where: str
    ) -> tuple[Draft, ParsedAnswer]:
        draft, answer = draft_answer(
            self.speller, response_ids, truths, self._match, where, ensure_ascii=self.ensure_ascii
        )
        ending = self.end_tokens.ids.intersection(draft.tokens.ids[draft.prefix_length :])
        if ending:
            token = self.speller.read([min(ending)]).text
            raise ValueError(
                f"{where}: the answer to train holds {token!r} (id {min(ending)}), at which rollouts end; take it "
                "out of rollout_matching.end_tokens, or out of the objects."
            )
        return draft, answer

    def _supervise(self, draft: Draft, truths: Sequence[TrueObject]) -> _Plan:
        own, appended = draft.answer.objects[: draft.kept], draft.answer.objects[draft.kept :]
        tokens = draft.tokens
        weights = [0.0] * draft.prefix_length + [1.0] * (len(tokens.ids) - draft.prefix_length)
        # A straddled token is written anew, but numbers and descriptions in it are still the model's own.
        unsupervised = [span for found in own for span in (found.desc_span, *found.number_spans)]
        if not self.supervise_desc:
            unsupervised += [found.desc_span for found in appended]
        for i in tokens.tokens_holding(unsupervised):
            weights[i] = 0.0
        new = tokens.tokens_holding([span for found in appended for span in found.number_spans])
        appended_numbers = {i for i in new if weights[i]}
        prefix = self._decide(draft, truths)
        for i in prefix.targets:
            weights[i] = 1.0
        indices = {kind: sorted(held) for kind, held in prefix.kinds.items()}
        indices[COORD] = sorted({*indices[COORD], *appended_numbers})
        return _Plan(weights, prefix, indices)

    def _decide(self, draft: Draft, truths: Sequence[TrueObject]) -> PrefixDecisions:
        if self.prefix_supervision == "coordinates":
            return coordinate_decisions(self.speller, draft, truths, ensure_ascii=self.ensure_ascii)
        return expert_decisions(
            self.speller, draft, truths, supervise_desc=self.supervise_desc, ensure_ascii=self.ensure_ascii
        )

    def _segment(self, sample: Sample, prompt_ids: list[int], draft: Draft, plan: _Plan) -> Segment:
        """Puts the answer behind the prompt: what is decided about token `i` is trained at `i - 1`."""
        shift = len(prompt_ids) - 1
        input_ids = [*prompt_ids, *draft.tokens.ids, self.end_tokens.trained]
        targets = [*input_ids[1:], self.end_tokens.trained]
        for i, token in plan.prefix.targets.items():
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


class ObjectsReader:
    """
    Reads a response while it is generated ([`~rollout_sft.rollouts.endings.ResponseReader`]).

    Args:
        speller (`Speller`):
            Of the model's tokenizer.

    Attributes:
        kept (`int`):
            Tokens up to the one that ended the last valid object; before the first, up to the one that began the list.
        over (`bool`):
            No object can follow, and the answer is not complete: more than white space stands behind its end, or the
            list broke. The `]` itself ends nothing: with the end token behind it the answer is complete.
    """

    def __init__(self, speller: Speller):
        self._spell_next = speller.spell_stream()
        self._answer = AnswerReader()
        self._read = 0
        self.kept = 0
        self.over = False

    def read(self, token_id: int) -> None:
        """Reads the next token."""
        self._read += 1
        answer = self._answer
        before = len(answer.objects), answer.body_start
        answer.read(self._spell_next(token_id))
        if (len(answer.objects), answer.body_start) != before:
            self.kept = self._read
        self.over = answer.over


@dataclass(frozen=True, slots=True)
class _Plan:
    """Holds the supervision over the tokens of a draft: position `i - 1` predicts token `i` here."""

    weights: list[float]
    prefix: PrefixDecisions
    indices: dict[str, list[int]]


def _read_sample(sample: Sample) -> tuple[list[int], list[TrueObject], str]:
    where = f"sample {sample.get('id', '?')!r}"
    for key in ("prompt_ids", "objects"):
        if key not in sample:
            raise ValueError(f"{where} has no {key!r}, only {sorted(sample)}; this target builder needs it.")
    prompt_ids = list(sample["prompt_ids"])
    if not prompt_ids:
        raise ValueError(f"{where}: prompt_ids is empty; the first token of an answer needs one to be predicted from.")
    return prompt_ids, read_truth(sample["objects"], where), where
