"""What the tests of layouts draw, and what they compare with."""

from hypothesis import strategies as st

lengths = st.lists(st.integers(1, 12), max_size=8)
some_lengths = st.lists(st.integers(1, 12), min_size=1, max_size=8)
multiples = st.none() | st.integers(1, 16)


def token_table(lens, padding):
    """Brute force: (span, position within it) of each packed token; padding is the last span."""
    spans = [*lens, padding] if padding else lens
    return [(span, position) for span, length in enumerate(spans) for position in range(length)]
