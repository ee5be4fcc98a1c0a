"""A right decision is right however it is spelled: the model's own tokens are its targets, for every vocabulary."""

import itertools
import json
import random
import re
from functools import cache

import pytest

from rollout_sft.rollouts.base import Rollout
from rollout_sft.targets.objects.builder import ObjectsTargetBuilder
from rollout_sft.targets.objects.parsing import parse_answer
from tests.rollout_sft.targets.objects.trained_answers import Answer, sample, thing
from tests.rollout_sft.targets.tokenizers import MAKERS, slow_text, tokenizer_named
from tests.vocabularies import REAL

MADE = [name for name in MAKERS if name != "digits"]  # which has one way to write, and few words
NAMES = [
    "cat",
    "traffic light",
    "猫",
    "café",
    "naïve Ωmega",
    "smile 😀",
    'a "b"',
    "back\\slash",
    "a/b",
    "tab\there",
    "]}",
]


class Style:
    """One way to write objects as JSON."""

    def __init__(self, rng):
        self.rng = rng
        self.item = rng.choice([", ", ",", ",\n  ", " , "])
        self.key = rng.choice([": ", ":", " : "])
        self.number = rng.choice([", ", ",", ", "])
        self.inside = rng.choice(["", "", " ", "\n    "])
        self.around = rng.choice(["", "", " ", "\n"])
        self.escape = rng.choice([0.0, 1.0, 0.5])
        self.swap = rng.random() < 0.3

    def answer(self, objects):
        inner = self.item.join(map(self.object, objects))
        return f"[{self.around}{inner}{self.around}]"

    def object(self, item):
        box = self.number.join(map(self.number_of, item["bbox_2d"]))
        parts = [f'"desc"{self.key}{self.string(item["desc"])}', f'"bbox_2d"{self.key}[{box}]']
        parts = parts[::-1] if self.swap else parts
        return "{" + self.inside + self.number.join(parts) + self.inside + "}"

    def string(self, text):
        return '"' + "".join(map(self.character, text)) + '"'

    def character(self, char):
        if char == "/":
            return self.rng.choice(["/", "\\/"])
        escaped = self.rng.random() < self.escape
        written = json.dumps(char, ensure_ascii=escaped)[1:-1]
        return written.replace("\\u", "\\u") if not escaped else re.sub(r"(?<=\\u)....", self.digits, written)

    def digits(self, match):
        return self.rng.choice([match[0].upper(), match[0]])

    def number_of(self, number):
        whole = [f"{number}.0", f"{number}e0", f"{number}.00"] if isinstance(number, int) else [f"{number}0"]
        return self.rng.choice([str(number)] * 3 + whole)


def truths_of(rng):
    """Objects that lie apart, so that there is one matching."""
    return [
        thing(rng.choice(NAMES), 100 * k, y, 100 * k + rng.choice([40, 55.5, 60]), y + rng.choice([70, 81.25]))
        for k, y in enumerate(rng.sample(range(1, 600), rng.randrange(0, 4)))
    ]


def tokens_of(rng, speller, text):
    """The text in tokens; now and then not those that the tokenizer would choose."""
    cuts = sorted(rng.randrange(len(text) + 1) for _ in range(4)) if rng.random() < 0.3 else []
    return [t for a, b in itertools.pairwise([0, *cuts, len(text)]) for t in speller.encode(text[a:b])]


def seeded(name, count):
    return (random.Random(f"{name} {seed}") for seed in range(count))


def vocabulary(name):
    return REAL[name]() if name in REAL else tokenizer_named(name)


@cache
def builders(name):
    return [
        ObjectsTargetBuilder(tokenizer=vocabulary(name), prefix_supervision=how) for how in ("coordinates", "expert")
    ]


def built(builder, tokenizer, ids, truths, *, truncated=False):
    target = builder.build(sample(*truths), Rollout(response_ids=ids, truncated=truncated))
    return Answer(tokenizer, target, end=getattr(getattr(builder, "end_tokens", None), "trained", None))


@pytest.mark.parametrize("name", [*MADE, *REAL])
def test_a_right_answer_stays_as_it_is(name):
    tokenizer, tried = vocabulary(name), 0
    for rng in seeded(name, 40):
        truths = truths_of(rng)
        text = Style(rng).answer(rng.sample(truths, len(truths)))
        for builder in builders(name):
            ids = tokens_of(rng, builder.speller, text)
            if builder.speller.spell(ids)[0] != text:
                continue  # a character was cut apart, or the tokenizer wrote another one
            answer = built(builder, tokenizer, ids, truths)
            assert (answer.ids, answer.targets) == (ids, ids), answer.supervised_text()
            assert answer.counters["rollout/matched"] == (len(truths), 1)
            tried += any(answer.weights)
    assert tried > 50


@pytest.mark.parametrize("name", [*MADE, *REAL])
def test_every_target_goes_on_to_an_answer_with_the_truths(name):
    tokenizer, corrected = vocabulary(name), 0
    for rng in seeded(name, 12):
        truths = truths_of(rng)
        own = [changed(rng, truth) for truth in truths if rng.random() < 0.8]
        if rng.random() < 0.4:
            own.insert(rng.randrange(len(own) + 1), thing(rng.choice(NAMES), 5000, 5000, 5050, 5060))
        text = Style(rng).answer(own)
        text = text[: rng.randrange(1, len(text) + 1)] if rng.random() < 0.3 else text
        for builder in builders(name):
            ids = tokens_of(rng, builder.speller, text)
            answer = built(builder, tokenizer, ids, truths)
            found = parse_answer(answer.text)
            assert found.complete, answer.text
            kept = [o for o in own if o in map(as_thing, found.objects)]
            candidates = list(expert_answers([as_thing(o) for o in found.objects[: len(kept)]], truths))
            for i, (weight, target) in enumerate(zip(answer.weights, answer.targets, strict=True)):
                said = slow_text(tokenizer, [*answer.ids[:i], target])
                if weight:
                    assert any(goes_on_to(said, answer.text, whole) for whole in candidates), said
                    corrected += target != answer.ids[i]
    assert corrected > 5


def as_thing(found):
    ordered = {"desc": found.desc, "bbox_2d": list(found.box)}
    return ordered if found.desc_span < found.number_spans[0] else dict(reversed(ordered.items()))


def changed(rng, truth):
    """The truth, or an object of the same place with another box or name."""
    x1, y1, x2, y2 = truth["bbox_2d"]
    kind = rng.randrange(4)
    if kind == 0:
        return {
            **truth,
            "desc": truth["desc"][: rng.randrange(len(truth["desc"]) + 1)] + rng.choice(["", "s", "é", "狗"]),
        }
    if kind == 1:
        return {**truth, "bbox_2d": [x1, y1 + rng.choice([1, 2.5]), x2 + rng.choice([0, 3]), y2]}
    return truth


def expert_answers(own, truths):
    """Every answer of an expert that takes over at one place: at an object, or at one of the five parts of one."""
    at = {j: m for m, o in enumerate(own) for j, t in enumerate(truths) if t["bbox_2d"][0] == o["bbox_2d"][0]}
    pairs = {m: j for j, m in at.items()}
    for m in range(len(own) + 1):
        done = [pairs[k] for k in range(m) if k in pairs]
        still = [j for j in range(len(truths)) if j not in done]
        if m == len(own) or not still:
            yield [*own[:m], *(truths[j] for j in still)]
            continue
        j = pairs.get(m, still[0])
        rest = [truths[i] for i in still if i != j]
        order = list(own[m])
        for k in range(6 if m in pairs else 1):
            yield [*own[:m], mixed(own[m], truths[j], k, order), *rest]


def mixed(own, truth, k, order):
    """The truth, but for the first `k` of the five parts, which are the model's own."""
    parts = {"desc": 1, "bbox_2d": 4}
    made = {}
    for key in order:
        n = min(k, parts[key])
        k -= n
        made[key] = (own[key] if n else truth[key]) if key == "desc" else own[key][:n] + truth[key][n:]
    return made


LEXEME = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*")|(-?\d[\d.eE+-]*)(?=[\s,\]])|([\[\]{},:]))', re.DOTALL)
CHARACTER = re.compile(r"\\u[0-9a-fA-F]{4}|\\.|[^\\]", re.DOTALL)


def lexemes(text):
    """What JSON reads in a text: its values and signs, and what is left of one that has not ended."""
    found, at = [], 0
    while match := LEXEME.match(text, at):
        string, number, sign = match.groups()
        found.append(json.loads(string) if string else float(number) if number else sign)
        at = match.end()
    return found, text[at:].lstrip()


def goes_on_to(said, own_text, whole):
    """Whether a beginning can become this answer; the keys of all objects have one order."""
    begun, rest = lexemes(said.rstrip("\N{REPLACEMENT CHARACTER}"))
    for back in (False, True):
        wanted, _ = lexemes(json.dumps([dict(sorted(o.items(), reverse=back)) for o in whole]))
        if wanted[: len(begun)] == begun and (not rest or starts(rest, wanted[len(begun)], own_text)):
            return True
    return False


def starts(rest, lexeme, own_text):
    if isinstance(lexeme, float):
        return rest in own_text or json.dumps(lexeme).startswith(rest) or str(int(lexeme)).startswith(rest)
    if not rest.startswith('"'):
        return False
    text = re.sub(r"\\(u[0-9a-fA-F]{0,3})?$", "", rest[1:])
    pairs = "".join(json.loads(f'"{c}"') if c.startswith("\\") else c for c in CHARACTER.findall(text))
    said = pairs.encode("utf-16", "surrogatepass").decode("utf-16", "replace").rstrip("\N{REPLACEMENT CHARACTER}")
    return str(lexeme).startswith(said)
