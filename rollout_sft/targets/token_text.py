"""
Maps token ids to characters and back, exactly.

Supervision is decided on characters ("this number") and applied to tokens. Only the decoder gives the right mapping:
offsets from encoding belong to the tokens that the tokenizer would choose, not to those that the model generated.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers.decoders import DecodeStream

Span = tuple[int, int]
"""Half-open range of characters."""

_TAIL = 5
"""Tokens that show whether a text ends in a character: one more than a character has bytes."""

_MOST_STEPS = 8
"""
Tokens in a row that may complete no character before a look at the last ones precedes each step of the decoder, which
reads all of them again: a run of bytes that are no text would cost the square of its length.
"""


@dataclass(frozen=True, slots=True)
class SpelledText:
    """
    Holds tokens and the characters that they stand for.

    Args:
        ids (`Sequence[int]`): The tokens.
        text (`str`): What they decode to.
        ends (`Sequence[int]`): For every token the number of characters up to its end, as from [`Speller.spell`].
    """

    ids: Sequence[int]
    text: str
    ends: Sequence[int]

    def token_at(self, char: int) -> tuple[int, int]:
        """
        Returns the first token that holds `char` or a part of it, and the character at which it starts. O(log n).
        """
        index = bisect_right(self.ends, char)
        start = self.ends[index - 1] if index else 0
        # Tokens that only begin a character end where they start.
        return (bisect_right(self.ends, start - 1) + 1 if start else 0), start

    def tokens_holding(self, spans: Sequence[Span]) -> set[int]:
        """Returns the tokens that hold at least one character of one of `spans`."""
        held: set[int] = set()
        for a, b in spans:
            i = bisect_right(self.ends, a)
            while i < len(self.ends) and (self.ends[i - 1] if i else 0) < b:
                held.add(i)
                i += 1
        return held


class Speller:
    """
    Spells token ids and encodes text that continues other text.

    Args:
        tokenizer (`PreTrainedTokenizerFast`):
            Any fast tokenizer that has an end token and can write JSON. It is copied, so padding or truncation
            that is switched on later does not change the copy.

    Raises:
        `ValueError`: no fast backend, no end token, or `[` and `]` do not survive encoding and decoding.
    """

    def __init__(self, tokenizer: Any):
        name = type(tokenizer).__name__
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(
                f"{name} has no `backend_tokenizer`, so tokens cannot be placed in the text; "
                "load a fast tokenizer (PreTrainedTokenizerFast)."
            )
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"{name} has no end token (eos_token_id is None), so answers could never end; "
                "set `eos_token` on the tokenizer."
            )
        self.eos_id = int(tokenizer.eos_token_id)
        self._backend = copy.deepcopy(backend)
        self._backend.no_padding()
        self._backend.no_truncation()
        # A description that contains "<eos>" is text, not the end of the answer.
        self._backend.encode_special_tokens = True
        pieces = {self._backend.token_to_id(f"<0x{byte:02X}>"): f"<0x{byte:02X}>" for byte in range(256)}
        self._byte_ids = {i for i, piece in pieces.items() if i is not None and self._backend.decode([i]) != piece}
        self._anchor = ""
        self._bracket = self._ids("[")
        # SentencePiece tokenizers put a space before all text that they encode. After a line break, which is cut
        # off again, they do not.
        for anchor in ("", "\n"):
            self._anchor = anchor
            if self.spell(self._bracket + self.encode("]"))[0] == "[]":
                break
        else:
            text, _ = self.spell(self._bracket + self.encode("]"))
            raise ValueError(
                f"{name} cannot write JSON: '[' and ']' in a row decode to {text!r}; "
                "use a tokenizer whose decode undoes its encode."
            )

    def spell(self, ids: Sequence[int]) -> tuple[str, list[int]]:
        """
        Returns the text of `ids` and where each token ends in it.

        Args:
            ids (`Sequence[int]`):
                Tokens as generated, special ones included. O(len(ids)).

        Returns:
            `tuple[str, list[int]]`: the text, and for every token the number of characters up to its end.
            Token `i` covers the characters from the previous end to its own: none for a token that only
            begins a character, which belongs to the token that completes it; an incomplete character at the
            end is not in the text.
        """
        spell_next = self.spell_stream()
        chunks: list[str] = []
        ends: list[int] = []
        length = 0
        for token in ids:
            if chunk := spell_next(int(token)):
                chunks.append(chunk)
                length += len(chunk)
            ends.append(length)
        return "".join(chunks), ends

    def spell_stream(self) -> Callable[[int], str]:
        """
        Returns a function that takes the tokens one after the other and returns the characters that each one ends.

        Joined they are the text of [`spell`].
        """
        stream, backend = DecodeStream(skip_special_tokens=False), self._backend
        held: list[int] = []  # tokens that the stream has not seen
        pending = 0
        tail: list[int] = []  # the last tokens

        def spell_next(token: int) -> str:
            nonlocal stream, held, pending
            if backend.id_to_token(token) is None:
                return ""  # it holds no characters; the decoder would leave it out
            held.append(token)
            pending += 1
            tail[:] = [*tail[1 - _TAIL :], token]
            if pending > _MOST_STEPS and not self._may_complete_character(tail):
                return ""
            given, held = held, []
            try:
                chunk = stream.step(backend, given) or ""
            except Exception as error:
                if "Invalid prefix" not in str(error):
                    raise
                # Byte tokens that are no UTF-8 change how the decoder reads the ones before them, which are already
                # text. What is pending is no character.
                stream = DecodeStream(skip_special_tokens=False)
                chunk = "\N{REPLACEMENT CHARACTER}" + (stream.step(backend, token) or "")
            if chunk:
                pending = 0
            return chunk

        return spell_next

    def _may_complete_character(self, tail: Sequence[int]) -> bool:
        """Returns False if the text still ends in something that is no character, as its last tokens show."""
        if self._byte_ids.issuperset(tail):
            return False  # they are read as one, and the first of them already were no UTF-8
        return not self._backend.decode(tail, skip_special_tokens=False).endswith("\N{REPLACEMENT CHARACTER}")

    def read(self, ids: Sequence[int]) -> SpelledText:
        """Returns the tokens with their text and their ends, from [`spell`]."""
        return SpelledText(ids, *self.spell(ids))

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of `text` as a continuation of other text, without special tokens or a leading space."""
        if not self._anchor:
            return self._ids(text)
        anchor, ids = self._ids(self._anchor), self._ids(self._anchor + text)
        if ids[: len(anchor)] != anchor:
            raise ValueError(f"the tokenizer merges a line break with {text[:40]!r}; it cannot encode continuations.")
        return ids[len(anchor) :]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids
