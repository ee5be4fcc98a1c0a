"""Draws answers with truths, and matches them as slowly as the definition says."""

import itertools
import json

from hypothesis import strategies as st

from tests.rollout_sft.targets.objects.trained_answers import thing

coordinates = {"digits": st.integers(0, 5).map(lambda k: 4 * k), "other": st.integers(0, 120)}
descriptions = {"digits": st.sampled_from("0123456789"), "other": st.sampled_from(["3", "cat", "]}", 'a "b"', "é"])}


@st.composite
def things(draw, kind):
    x, y = draw(coordinates[kind]), draw(coordinates[kind])
    side = st.integers(1, 4).map(lambda k: 4 * k) if kind == "digits" else st.integers(1, 130)
    return thing(draw(descriptions[kind]), x, y, x + draw(side), y + draw(side))


@st.composite
def answers(draw, kind):
    """Truths, and an answer with right, wrong and malformed objects; its valid objects and their places."""
    truths = draw(st.lists(things(kind), max_size=3))
    text, valid, malformed = "[", [], 0
    for k in range(draw(st.integers(0, 3))):
        text += ", " if k else ""
        choice = draw(st.integers(0, 5))
        if choice == 0:
            text += '{"desc": "3", "bbox_2d": [4, 8, 12]}'
            malformed += 1
            continue
        item = draw(things(kind)) if choice == 1 or not truths else draw(st.sampled_from(truths))
        if choice == 2:
            x1, y1, x2, y2 = item["bbox_2d"]
            item = {**item, "bbox_2d": [x1, y1, x2 + 4, y2]}
        valid.append((item, len(text)))
        text += json.dumps(item)
    end = draw(st.sampled_from(["]", "", ", ", ', {"desc": ', "]]"]))
    return truths, text + end, valid, malformed


def best_pairs(valid, truths, gate):
    """Brute force over all one-to-one assignments: those with the largest sum of gated IoU."""

    def iou(a, b):
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        both = max(width, 0) * max(height, 0)
        area = lambda c: (c[2] - c[0]) * (c[3] - c[1])  # noqa: E731
        return both / (area(a) + area(b) - both)

    found = []
    slots = [*range(len(truths)), *[None] * len(valid)]
    for order in set(itertools.permutations(slots, len(valid))):
        pairs = {i: j for i, j in enumerate(order) if j is not None}
        gains = [iou(valid[i][0]["bbox_2d"], truths[j]["bbox_2d"]) for i, j in pairs.items()]
        if all(gain >= gate for gain in gains):
            found.append((sum(gains), pairs))
    best = max(total for total, _ in found)
    return [pairs for total, pairs in found if total > best - 1e-9]
