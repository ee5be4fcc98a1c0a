"""Odd values, and small damages of a text that was good."""

import re

from hypothesis import strategies as st

WORDS = ["off", "no", "yes", "steps", "epoch", "auto", "", "0", "3", "1e-3", "1e999", "nan", "[]", "..", "a:b"]
TEXTS = st.text(max_size=30) | st.sampled_from(
    [*WORDS, "\x00", "é", "\ud800", "x" * 5000, "9" * 5000, "{", "{{ 1/0 }}"]
)
NUMBERS = (
    st.integers(-3, 3)
    | st.integers()
    | st.floats()
    | st.sampled_from([2**31, 2**63, 10**38, -(10**38), 1e308, 5e-324, float("inf"), float("-inf"), float("nan")])
)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=8
)
SIGNS = [*'[]{}:,-?&*!|>%@`"#\n\t \\', "\x00", "\ud800", "é", "&a ", "*a", "<<: ", "!!int ", "- ", "'", "\\ud83d"]
WRITTEN = [
    *(
        "!!int x",
        "!!bool x",
        "!!timestamp 2024-13-01",
        "!!set {a}",
        "2024-13-01",
        "0x",
        "1:60.5",
        "9" * 5000,
        ".inf",
        "1e999",
    ),
    *("[" * 200, "[" * 70 + "]" * 70, "{[1]: 2}", "{{}: 2}", "&b [*b]", "[&c 1, *c]", "*none", "|", "%", "@"),
    *(
        '"\\ud83d"',
        '"\\ud83d\\ude00"',
        '["\\udc00"]',
        "NaN",
        "null",
        "true",
        "-",
        "{}",
        '""',
        "-1",
        '"' + "x" * 5000 + '"',
    ),
]
"""Values as YAML or JSON may write them, good and bad."""
MUTATIONS = st.lists(
    st.tuples(st.just("value"), st.integers(0, 2**16), st.just(0), st.sampled_from(WRITTEN))
    | st.tuples(
        st.sampled_from(["insert", "delete", "repeat"]),
        st.integers(0, 2**16),
        st.integers(1, 40),
        st.sampled_from(SIGNS),
    ),
    min_size=1,
    max_size=3,
)


def mutated(text, mutations):
    """The text with a few pieces put in, taken out or repeated, or with another value behind a colon."""
    for kind, place, length, piece in mutations:
        at = place % (len(text) + 1)
        if kind == "insert":
            text = text[:at] + piece + text[at:]
        elif kind == "delete":
            text = text[:at] + text[at + length :]
        elif kind == "repeat":
            text = text[:at] + text[at : at + length] * 3 + text[at:]
        else:
            values = list(re.finditer(r"(?<=: )[^\s,}][^\n,}]*", text))
            if values:
                old = values[place % len(values)]
                text = text[: old.start()] + piece + text[old.end() :]
    return text
