"""Says which tokens end a rollout, and which one is trained as the end of an answer.

    ids       a rollout ends at the first of them: the end tokens of the model's `generation_config`, of the tokenizer
              and of `rollout_matching.end_tokens`, and the trained one
    trained   the token that the chat template writes behind an assistant's answer; the tokenizer's `eos_token` where
              there is no template, or where the template writes no such token

Backends, evaluation and target builders ask here alone, so that a model is trained towards an end at which its rollouts
stop.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rollout_sft.config.arguments import RolloutSFTConfig
from rollout_sft.config.shorten import shorten

_ANSWER = "the answer of the assistant"


@dataclass(frozen=True, slots=True)
class EndTokens:
    """
    Holds the end tokens of one run.

    Args:
        trained (`int`):
            The last target of every answer.
        ids (`frozenset[int]`):
            Tokens that end a rollout, `trained` among them. No response holds one.
    """

    trained: int
    ids: frozenset[int]


def find_end_tokens(
    tokenizer: PreTrainedTokenizerBase, config: RolloutSFTConfig | None = None, *, generation_config: Any = None
) -> EndTokens:
    """
    Finds the end tokens.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            Has an end token, and perhaps a chat template.
        config (`RolloutSFTConfig`, *optional*):
            Gives `end_tokens` and `chat_template_kwargs`.
        generation_config (`GenerationConfig`, *optional*):
            The model's. A target builder needs `trained` alone, and can do without it.

    Returns:
        `EndTokens`: `ids` holds all of them, but without `generation_config` not those that it alone names.

    Raises:
        `ValueError`: `end_tokens` names a token that the tokenizer does not have.
    """
    assert tokenizer.eos_token_id is not None  # refused earlier
    further = [_id_of(name, tokenizer) for name in (config.end_tokens if config else ())]
    known = {int(tokenizer.eos_token_id), *further, *_ids_of(generation_config)}
    trained = _written_by_template(tokenizer, config.chat_template_kwargs if config else {}, known)
    trained = int(tokenizer.eos_token_id) if trained is None else trained
    return EndTokens(trained, frozenset({trained, *known}))


def end_tokens_of(
    model: Any, tokenizer: PreTrainedTokenizerBase, config: RolloutSFTConfig, *, vocab_size: int
) -> EndTokens:
    """
    Finds the end tokens of a loaded model, and adds the trained one to its `generation_config`, with which it is saved.

    Args:
        model (`PreTrainedModel`):
            Has a `generation_config`, or none.
        tokenizer (`PreTrainedTokenizerBase`):
            As in [`find_end_tokens`].
        config (`RolloutSFTConfig`):
            As in [`find_end_tokens`].
        vocab_size (`int`):
            The model generates smaller ids.

    Raises:
        `ValueError`: a target builder, which does not see the model, would train another end.
    """
    generation_config = getattr(model, "generation_config", None)
    ends = find_end_tokens(tokenizer, config, generation_config=generation_config)
    if find_end_tokens(tokenizer, config).trained != ends.trained:
        token = tokenizer.convert_ids_to_tokens(ends.trained)
        raise ValueError(
            f"the chat template ends an assistant's turn with {token!r} (id {ends.trained}), an ordinary token that "
            f"the model's generation_config alone names as an end. Set rollout_matching.end_tokens: [{token!r}], so "
            "that the target builder trains it."
        )
    if generation_config is not None and ends.trained not in (saved := _ids_of(generation_config)):
        generation_config.eos_token_id = [*saved, ends.trained]
    return EndTokens(ends.trained, frozenset(token for token in ends.ids if token < vocab_size))


def _ids_of(generation_config: Any) -> list[int]:
    ids = getattr(generation_config, "eos_token_id", None)
    return [] if ids is None else [ids] if isinstance(ids, int) else [int(token) for token in ids]


def _id_of(name: str, tokenizer: PreTrainedTokenizerBase) -> int:
    vocabulary = tokenizer.get_vocab()
    if name not in vocabulary:
        added = [str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()]
        near = difflib.get_close_matches(name, added, n=1, cutoff=0.0)
        raise ValueError(
            f"rollout_matching.end_tokens holds {shorten(name)}, which is no token of the tokenizer; the nearest "
            f"special token is {near[0] if near else tokenizer.eos_token!r}."
        )
    return vocabulary[name]


def _written_by_template(
    tokenizer: PreTrainedTokenizerBase, kwargs: dict[str, Any], known: Iterable[int]
) -> int | None:
    """
    Returns the token with which the template ends an answer: behind it, white space aside, and one that cannot be text.

    Text that ends a turn in several tokens, such as a line of `###`, is no end: its first token may be part of answers.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    behind = _behind_answer(tokenizer, kwargs).lstrip()
    added = getattr(tokenizer, "added_tokens_decoder", {})
    names: dict[Any, int] = {tokenizer.convert_ids_to_tokens(token): token for token in (*added, *known)}
    found = [name for name in names if name and behind.startswith(name)]
    return names[max(found, key=len)] if found else None


def _behind_answer(tokenizer: PreTrainedTokenizerBase, kwargs: dict[str, Any]) -> str:
    """Returns what the template writes behind the answer of the last turn; empty where it cannot write one."""
    forms: tuple[Any, ...] = (("a question", _ANSWER), ([_part("a question")], [_part(_ANSWER)]))
    for content in forms:
        messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), content, strict=True)]
        try:
            written = str(tokenizer.apply_chat_template(messages, tokenize=False, **kwargs))
        except Exception:  # a template may raise anything; those of image models take lists of parts
            continue
        if _ANSWER in written:
            return written.rpartition(_ANSWER)[2]
    return ""


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
