"""Y_train and its masks over generated answers, against a slow oracle."""

import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_sft.rollouts.base import Rollout
from rollout_sft.targets.objects.builder import ObjectsTargetBuilder
from tests.rollout_sft.targets.objects.generated_answers import answers, best_pairs
from tests.rollout_sft.targets.objects.trained_answers import (
    Answer,
    build,
    sample,
)
from tests.rollout_sft.targets.tokenizers import MAKERS, slow_ends, slow_text, tokenizer_named


def expected_decisions(text, valid, truths, pairs, tokens_of):
    """
    For tokenizers whose numbers share no token with anything: character where a token starts -> its target's text.

    `tokens_of` splits a number (or a character behind it) into the texts of its tokens.
    """
    decisions = {}
    for i, j in pairs.items():
        item, start = valid[i]
        at = text.index('"bbox_2d": [', start) + len('"bbox_2d": [')
        for generated, true in zip(item["bbox_2d"], truths[j]["bbox_2d"], strict=True):
            here = at
            ends = "," if at + len(str(generated)) < text.index("]", at) else "]"
            mine, wanted = [*tokens_of(str(generated)), ends], [*tokens_of(str(true)), ends]
            for a, b in itertools.zip_longest(mine, wanted):
                if a == b == ends:
                    break
                decisions[here] = b
                if a != b:
                    break
                here += len(a)
            at += len(str(generated)) + 2
    return decisions


@pytest.mark.parametrize(("name", "tokens_of"), [("digits", lambda n: [n]), ("characters", list)])
@given(data=st.data(), supervise_desc=st.booleans())
@settings(max_examples=80, deadline=None)
def test_masks_are_those_of_a_slow_oracle(name, tokens_of, data, supervise_desc):
    kind = "digits" if name == "digits" else "other"
    truths, text, valid, _ = data.draw(answers(kind))
    answer = build(name, text, *truths, supervise_desc=supervise_desc)
    cut = valid[-1][1] + len(json.dumps(valid[-1][0])) if valid else 1
    candidates = []
    for pairs in best_pairs(valid, truths, 0.5):
        missing = [truth for j, truth in enumerate(truths) if j not in pairs.values()]
        tail = (", " if valid and missing else "") + ", ".join(map(json.dumps, missing)) + "]"
        decisions = expected_decisions(text, valid, truths, pairs, tokens_of)
        masked = set()
        if not supervise_desc:
            at = cut + (2 if valid and missing else 0)
            for truth in missing:
                desc = json.dumps(truth["desc"])
                masked.update(range(at + 9 + 1, at + 9 + len(desc) - 1))
                at += len(json.dumps(truth)) + 2
        candidates.append((text[:cut] + tail, decisions, masked))
    starts = [0, *slow_ends(answer.tokenizer, answer.ids)]
    seen = {
        starts[i]: slow_text(answer.tokenizer, [target])
        for i, (target, weight) in enumerate(zip(answer.targets, answer.weights, strict=True))
        if weight and starts[i] < cut
    }
    hidden = {
        c
        for i, weight in enumerate(answer.weights)
        for c in range(starts[i], starts[i + 1])
        if not weight and starts[i] >= cut and (name == "characters" or c not in (starts[i], starts[i + 1] - 1))
    }
    # With ties among the matchings any of them will do, but text, targets and masks must be of the same one.
    seen_text = {at: wanted[0] if wanted and wanted[0] in ",]" else wanted for at, wanted in seen.items()}
    assert (answer.text, seen_text, hidden) in candidates


@pytest.mark.parametrize("name", MAKERS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_y_train_begins_as_generated_and_ends_as_the_truth_asks(name, data):
    kind = "digits" if name == "digits" else "other"
    truths, text, valid, malformed = data.draw(answers(kind))
    tokenizer = tokenizer_named(name)
    builder = ObjectsTargetBuilder(tokenizer=tokenizer)
    ids = builder.speller.encode(text)
    if name != "digits":  # tokens as no tokenizer would choose them, and an end in the middle of a token
        pieces = data.draw(st.lists(st.integers(0, len(text)), max_size=6).map(lambda cuts: [0, *sorted(cuts), None]))
        ids = [t for a, b in itertools.pairwise(pieces) for t in builder.speller.encode(text[a:b])]
    ids = ids[: data.draw(st.integers(0, len(ids)))] if data.draw(st.booleans()) else ids
    answer = Answer(tokenizer, builder.build(sample(*truths), Rollout(response_ids=ids, truncated=False)))
    generated = slow_text(tokenizer, ids)
    ends = [start + len(json.dumps(item)) for item, start in valid]
    whole = [item for (item, _), end in zip(valid, ends, strict=True) if end <= len(generated)]
    cut = ends[len(whole) - 1] if whole else min(1, len(generated))
    held = [0, *slow_ends(tokenizer, ids)]
    prefix_length = max((k for k in range(1, len(held)) if held[k - 1] < held[k] <= cut), default=0)
    assert answer.ids[:prefix_length] == ids[:prefix_length]
    loaded = json.loads(answer.text)
    boxes = [o for o in loaded if len(o["bbox_2d"]) == 4]
    if not malformed:
        assert boxes == loaded
    assert boxes[: len(whole)] == whole
    appended = boxes[len(whole) :]
    assert all(o in truths for o in appended)
    matched = answer.counters["rollout/matched"][0]
    assert len(appended) == len(truths) - matched
    assert answer.counters["rollout/appended"] == (len(appended), 1)
    assert all(weight == 0 for weight in answer.weights[:prefix_length]) or whole
    # Every target inside the prefix goes on to spell what a matched truth says there.
    assert all(answer.weights[i] in (0, 1) for i in range(len(answer.ids)))
    for i in range(prefix_length):
        if answer.weights[i] and whole:
            said = slow_text(tokenizer, [*answer.ids[:i], answer.targets[i]])
            assert any(spells(said, w) for w in truthful(answer.text, whole, truths)), said
    assert torch.equal(answer.segment.indices["supervised"], answer.segment.weights.nonzero().flatten())


def spells(said, whole):
    return whole.startswith(said) or said.startswith(whole)


def truthful(text, valid, truths):
    """The answer up to a slot of any object, as generated, and from there on the coordinates of any truth."""
    at = 0
    for item in valid:
        at = text.index(json.dumps(item), at)
        for truth in truths:
            for k in range(4):
                numbers = item["bbox_2d"][:k] + truth["bbox_2d"][k:]
                yield text[:at] + json.dumps({**item, "bbox_2d": numbers})
        at += 1
