"""Builds targets from answers, and reads them from the side of the answer."""

from rollout_sft.rollouts.base import Rollout
from rollout_sft.targets.objects.builder import ObjectsTargetBuilder
from tests.rollout_sft.targets.tokenizers import slow_text, tokenizer_named

PROMPT = [5, 6, 7]


def thing(desc, *box):
    return {"desc": desc, "bbox_2d": list(box)}


def sample(*objects):
    return {"id": "s", "prompt_ids": PROMPT, "objects": list(objects)}


SCORED_BY_BUILDING_ALONE = {"rollout/appended", "rollout/unaligned_slots"}


def build(name, text_or_ids, *truths, truncated=False, **options):
    tokenizer = tokenizer_named(name)
    # As `json.dumps` writes them, so that tests can say what they expect; test_spelling.py has the default.
    builder = ObjectsTargetBuilder(tokenizer=tokenizer, **{"ensure_ascii": True, **options})
    ids = builder.speller.encode(text_or_ids) if isinstance(text_or_ids, str) else text_or_ids
    target = builder.build(sample(*truths), Rollout(response_ids=ids, truncated=truncated))
    return Answer(tokenizer, target)


class Answer:
    """A built target, read from the side of the answer: token `i` of Y_train and what was asked of it."""

    def __init__(self, tokenizer, target, *, end=None):
        end = tokenizer.eos_token_id if end is None else end
        self.tokenizer, self.segment, self.counters = tokenizer, target.segment, target.counters
        ids = self.segment.input_ids.tolist()
        assert ids[: len(PROMPT)] == PROMPT
        assert ids[-1] == end
        self.ids = ids[len(PROMPT) : -1]
        self.text = slow_text(tokenizer, self.ids)
        at = slice(len(PROMPT) - 1, -2)
        self.weights = self.segment.weights[at].tolist()
        self.targets = self.segment.targets[at].tolist()
        assert self.segment.weights[: len(PROMPT) - 1].tolist() == [0] * (len(PROMPT) - 1)
        assert self.segment.weights[-2:].tolist() == [1, 0]
        assert self.segment.targets[-2] == end

    def text_at(self, i):
        return slow_text(self.tokenizer, self.ids[i : i + 1])

    def field(self, name):
        return [p - len(PROMPT) + 1 for p in self.segment.indices[name].tolist()]

    def supervised_text(self):
        """The answer with what is supervised in angle brackets: «right», or «generated→target»."""
        pieces = []
        for i, (token, target, weight) in enumerate(zip(self.ids, self.targets, self.weights, strict=True)):
            piece = slow_text(self.tokenizer, self.ids[: i + 1])[len(slow_text(self.tokenizer, self.ids[:i])) :]
            wanted = slow_text(self.tokenizer, [*self.ids[:i], target])[len(slow_text(self.tokenizer, self.ids[:i])) :]
            pieces.append(piece if not weight else f"«{piece}»" if target == token else f"«{piece}→{wanted}»")
        return "".join(pieces).replace("»«", "·")


THREE, EIGHT = thing("3", 4, 8, 12, 16), thing("8", 20, 24, 28, 32)
