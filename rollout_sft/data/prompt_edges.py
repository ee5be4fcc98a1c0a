"""Names prompts that begin or end with tokens with which no answer can be right.

<s><s>[INST] ...     the text of `prompt` was written by a chat template, and the tokenizer adds its begin token again
... </s>             an end token, from the text or added by the tokenizer: the answer would stand behind its own end
... <think>          an open block of thoughts: the answer would stand within it
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

from rollout_sft.config.shorten import cut, shorten

logger = logging.getLogger(__name__)

_OPEN = re.compile(r"(<think(?:ing)?>|\[THINK\])\s*\Z")


class Edges:
    """
    Checks both ends of texts that are encoded as they are.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            Encodes them.
    """

    def __init__(self, tokenizer: Any):
        with_special = tokenizer("a")["input_ids"]
        self._begin: str | None = tokenizer.bos_token
        self._end: str | None = tokenizer.eos_token
        self._adds_begin = self._begin is not None and with_special[:1] == [tokenizer.bos_token_id]
        self._adds_end = self._end is not None and with_special[-1:] == [tokenizer.eos_token_id]

    def check(self, text: str, place: str) -> None:
        """Raises `ValueError` for a text with a second begin token or an end token behind it."""
        if self._adds_begin and text.startswith(str(self._begin)):
            raise ValueError(
                f"{place}: prompt begins with {self._begin!r}, and the tokenizer adds another one in front of it; "
                "leave it out, as of a text that the chat template wrote, or give messages instead."
            )
        if self._adds_end:
            raise ValueError(
                f"{place}: the tokenizer adds its end token {self._end!r} behind every prompt, so the answer would "
                "stand behind its own end; set add_eos_token to false on the tokenizer."
            )
        if self._end and text.rstrip().endswith(self._end):
            raise ValueError(
                f"{place}: prompt ends with the end token {self._end!r}, so the answer would stand behind its own end; "
                "leave it out, or write the prompt with add_generation_prompt."
            )


class Thoughts:
    """
    Looks for a block of thoughts that a prompt leaves open.

    Args:
        refused (`bool`):
            Whether one is an error. Otherwise it is named once, in the log: a target builder may write thoughts.

    Attributes:
        template_was_seen (`bool`):
            Whether a prompt that the chat template wrote was checked.
    """

    def __init__(self, *, refused: bool):
        self._refused = refused
        self._named = False
        self.template_was_seen = False

    def check_template(self, write: Callable[[], str], place: str) -> None:
        """Checks a prompt that the chat template writes; leaves a template that cannot write it to a later check."""
        self.template_was_seen = True
        try:
            written = write()
        except Exception:  # a template may raise anything, and raises it again when the prompt is encoded
            return
        self.check(written, place)

    def check(self, text: str, place: str) -> None:
        """
        Raises `ValueError`, or warns, where the end of the text opens a block of thoughts.
        """
        found = _OPEN.search(text[-100:])
        if found is None or self._named:
            return
        problem = (
            f"the prompt ends with an open {found[1]}: {shorten(cut(text[-60:]))}; the answer would stand within it"
        )
        if self._refused:
            raise ValueError(
                f"{place}: {problem}. Close it: data.chat_template_kwargs: {{enable_thinking: false}} does so for many "
                "templates; otherwise change tokenizer.chat_template."
            )
        self._named = True
        logger.warning("%s: %s. Targets have to close it.", place, problem)
