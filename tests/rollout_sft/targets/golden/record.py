"""Records what the object builder makes of seeded answers: `python -m tests.rollout_sft.targets.golden.record`.

`coordinates.json` was recorded from the code before `prefix_supervision` existed; record it anew only when a change of
the default's targets is wanted.
"""

import itertools
import json
import random
from pathlib import Path

from rollout_sft.rollouts.base import Rollout
from rollout_sft.targets.objects.builder import ObjectsTargetBuilder
from tests.rollout_sft.targets.tokenizers import MAKERS, tokenizer_named

FILE = Path(__file__).parent / "coordinates.json"
WORDS = ["3", "cat", "traffic light", "]}", 'a "b"', "é", "猫", "the cat on the second shelf from the left"]
PROMPT = [5, 6, 7]


def thing(rng, digits):
    step = 4 if digits else 1
    x, y = (rng.randrange(0, 21) * step for _ in range(2))
    w, h = (rng.randrange(1, 5 if digits else 130) * step for _ in range(2))
    desc = str(rng.randrange(10)) if digits else rng.choice(WORDS)
    return {"desc": desc, "bbox_2d": [x, y, min(x + w, 40), min(y + h, 40)] if digits else [x, y, x + w, y + h]}


def things(rng, digits):
    made = [thing(rng, digits) for _ in range(rng.randrange(1, 5))]
    return [t for t in made if t["bbox_2d"][0] < t["bbox_2d"][2] and t["bbox_2d"][1] < t["bbox_2d"][3]]


def written(rng, item):
    """An object as a model may write it: keys in either order, other spaces now and then."""
    if rng.random() < 0.2:
        item = dict(reversed(item.items()))
    return json.dumps(item, ensure_ascii=rng.random() < 0.7)


def answer_text(rng, truths, digits):
    pieces = []
    for _ in range(rng.randrange(1, 5)):
        kind = rng.randrange(6)
        if kind == 0:
            pieces.append('{"desc": "3", "bbox_2d": [4, 8, 12]}')
            continue
        item = thing(rng, digits) if kind == 1 or not truths else rng.choice(truths)
        x1, y1, x2, y2 = item["bbox_2d"]
        if kind in (2, 4):
            item = {**item, "bbox_2d": [x1, y1, x2 + (4 if digits else rng.randrange(1, 1 + x2 - x1)), y2]}
        if kind == 3:
            item = {**item, "desc": thing(rng, digits)["desc"]}
        pieces.append(json.dumps(item) if digits else written(rng, item))
    return "[" + ", ".join(pieces) + rng.choice(["]", "]", "", ", ", ', {"desc": ', "]]"])


def tokens(rng, speller, text, digits):
    """The text in tokens, now and then in other ones than the tokenizer would choose, or cut short."""
    cuts = [0, len(text)]
    if not digits and rng.random() < 0.5:
        cuts = [0, *sorted(rng.randrange(len(text) + 1) for _ in range(6)), len(text)]
    ids = [t for a, b in itertools.pairwise(cuts) for t in speller.encode(text[a:b])]
    return ids[: rng.randrange(len(ids) + 1)] if rng.random() < 0.2 else ids


def cases():
    """Yields `(key, tokenizer name, options, truths, response ids)`."""
    for name in MAKERS:
        speller = ObjectsTargetBuilder(tokenizer=tokenizer_named(name)).speller
        for seed in range(30):
            rng = random.Random(f"{name} {seed}")
            digits = name == "digits"
            truths = things(rng, digits)
            ids = tokens(rng, speller, answer_text(rng, truths, digits), digits)
            options = {"supervise_desc": rng.random() < 0.7, "iou_threshold": rng.choice([0.1, 0.5, 0.5])}
            yield f"{name} {seed}", name, options, truths, ids


def recorded(target):
    """A target as JSON: all of it, and short where it only says that the next token is wanted."""
    segment = target.segment
    ids, targets, weights = (getattr(segment, n).tolist() for n in ("input_ids", "targets", "weights"))
    return {
        "ids": ids,
        "other_targets": [[i, t] for i, (t, n) in enumerate(zip(targets, [*ids[1:], ids[-1]], strict=True)) if t != n],
        "trained": [i for i, w in enumerate(weights) if w],
        "weights": sorted(set(weights)),
        "coord": segment.indices["coord"].tolist(),
        "fields": sorted(segment.indices),
        "counters": target.counters,
    }


def build(name, options, truths, ids):
    builder = ObjectsTargetBuilder(tokenizer=tokenizer_named(name), ensure_ascii=True, **options)
    sample = {"id": "s", "prompt_ids": PROMPT, "objects": truths}
    return builder.build(sample, Rollout(response_ids=ids, truncated=False))


if __name__ == "__main__":
    found = {key: recorded(build(*case)) for key, *case in cases()}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in found.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
