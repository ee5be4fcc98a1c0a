"""Odd values, and small damages of a text that was good."""

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
MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["insert", "delete", "repeat"]),
        st.integers(0, 2**16),
        st.integers(1, 40),
        st.sampled_from(
            [
                *'[]{}:,-?&*!|>%@`"#\n\t \\',
                "\x00",
                "\ud800",
                "é",
                "&a ",
                "*a",
                "<<: ",
                "!!int ",
                "- ",
                ": ",
                "'",
                "\\ud83d",
            ]
        ),
    ),
    min_size=1,
    max_size=6,
)


def mutated(text, mutations):
    """The text with a few pieces put in, taken out or repeated."""
    for kind, place, length, piece in mutations:
        at = place % (len(text) + 1)
        if kind == "insert":
            text = text[:at] + piece + text[at:]
        elif kind == "delete":
            text = text[:at] + text[at + length :]
        else:
            text = text[:at] + text[at : at + length] * 3 + text[at:]
    return text
