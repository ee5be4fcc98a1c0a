"""
Makes prompts of records: finds the places of images, encodes with the chat template, and expands the image tokens.

A place is a part `{"type": "image"}` of a message, or `<image>` in a message's text or in `prompt`. The places of a
record and its `images` have the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

from rollout_sft.config.shorten import cut, shorten
from rollout_sft.data.prompt_edges import Edges, Thoughts
from rollout_sft.inputs.base import InputAdapter
from rollout_sft.inputs.images import Image
from rollout_sft.inputs.placeholders import check_places

PLACE = "<image>"
_AROUND = ("<|vision_start|>", "<|vision_end|>")


class Prompts:
    """
    Encodes the prompts of records.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            Encodes `prompt` unchanged, and `messages` with its chat template and the generation prompt.
        adapter (`InputAdapter`, *optional*):
            Of an image model; without one, or with that of a text model, images are refused.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*):
            Further arguments of the chat template.
        answer_first (`bool`, *optional*, defaults to `True`):
            Whether answers begin directly behind the prompt, so that none may be left within a block of thoughts.
    """

    def __init__(
        self,
        tokenizer: Any,
        adapter: InputAdapter | None = None,
        *,
        chat_template_kwargs: Mapping[str, Any] = MappingProxyType({}),
        answer_first: bool = True,
    ):
        self._tokenizer = tokenizer
        self._kwargs = dict(chat_template_kwargs)
        self._thoughts = Thoughts(refused=answer_first)
        self._adapter = None if adapter is None or adapter.image_token_id is None else adapter

    @property
    def reads_images(self) -> bool:
        """Returns whether the model reads images."""
        return self._adapter is not None

    def normalise(self, row: Mapping[str, Any], place: str) -> dict[str, Any]:
        """
        Checks `messages` or `prompt` and writes them in one form.

        For an image model every content is a list of parts, and `<image>` is a part; for a text model it is a text.

        Raises:
            `ValueError`: something is malformed, or has images although the model reads none.
        """
        if "messages" in row:
            messages = self._normalise_messages(row["messages"], place)
            if not self._thoughts.template_was_seen:  # it ends every prompt in the same way
                self._thoughts.check_template(lambda: self._write(messages), place)
            return {"messages": messages}
        text = row["prompt"]
        if not isinstance(text, str) or not text:
            raise ValueError(f"{place}: prompt is {shorten(text)}; give a text that is not empty.")
        self._edges.check(text, place)
        self._thoughts.check(text, place)
        return {"prompt": text if self._adapter is None else text.replace(PLACE, self._placeholder())}

    def encode(self, record: Mapping[str, Any]) -> list[int]:
        """Returns the token ids of a normalised record, with all tokens that the model reads for its images."""
        if "messages" in record:
            ids = self._tokenizer.apply_chat_template(
                record["messages"], add_generation_prompt=True, tokenize=True, return_dict=False, **self._kwargs
            )
        else:
            ids = self._tokenizer(record["prompt"])["input_ids"]
        return list(ids) if self._adapter is None else self._adapter.expand(ids, record.get("images", ()))

    def check(self, record: Mapping[str, Any], place: str, *, longest: int | None) -> None:
        """
        Checks a normalised record of an image model; encodes those with images once.

        Args:
            record (`Mapping`):
                Has `messages` or `prompt`, and `images`.
            place (`str`):
                The start of every message.
            longest (`int`, *optional*):
                The most tokens that a prompt with images may have.

        Raises:
            `ValueError`: there are more or fewer images than places, the chat template loses a text or an image, an
                image cannot be resized, or the prompt is too long.
        """
        assert self._adapter is not None
        images: Sequence[Image] = record["images"]
        for i, image in enumerate(images):
            try:
                self._adapter.image_tokens(image)
            except ValueError as error:
                size = f"{image.width} x {image.height}"
                raise ValueError(f"{place}: images[{i}], {size} pixels, is refused: {error}.") from None
        if "messages" in record:
            self._check_template(record["messages"], len(images), place)
            texts = [part["text"] for message in record["messages"] for part in message["content"] if "text" in part]
        else:
            texts = [record["prompt"]]
        tokens = self._tokenizer.convert_ids_to_tokens(sorted(self._adapter.media_token_ids))
        names = [token for token in tokens if token is not None]  # the tokenizer may lack the token of videos
        if not images and not any(name in text for name in names for text in texts):
            return  # nothing to refuse; encoding a megabyte takes a second
        try:
            if "prompt" in record:
                token = self._tokenizer.convert_ids_to_tokens(self._adapter.image_token_id)
                check_places(record["prompt"].count(token), len(images), token)
            ids = self.encode(record)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        others = sorted((self._adapter.media_token_ids - {self._adapter.image_token_id}).intersection(ids))
        if others:
            token = self._tokenizer.convert_ids_to_tokens(others[0])
            raise ValueError(f"{place}: the prompt holds {token}, the token of a video; only images are trained.")
        if images and longest is not None and len(ids) > longest:
            pixels = ", ".join(f"{image.width} x {image.height}" for image in images[:8])
            tokens = sum(self._adapter.image_tokens(image) for image in images)
            raise ValueError(
                f"{place}: the prompt has {len(ids)} tokens, {tokens} of them for images ({pixels} pixels), and "
                f"{longest} leave room for max_new_tokens in global_max_length; set model.max_pixels (Qwen-VL), shrink "
                "the images, or raise global_max_length."
            )

    def _write(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Returns the text of a prompt."""
        return str(
            self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **self._kwargs)
        )

    @cached_property
    def _edges(self) -> Edges:
        return Edges(self._tokenizer)

    def _check_template(self, messages: Sequence[Mapping[str, Any]], images: int, place: str) -> None:
        parts = [part for message in messages for part in message["content"]]
        places = sum(part["type"] == "image" for part in parts)
        if places != images:
            raise ValueError(
                f"{place}: messages have {places} places for images ({PLACE}, or parts of type image), and images has "
                f"{images}; give one image for each place, in order."
            )
        try:
            written = self._write(messages)
        except Exception as error:  # a template may raise anything, and refuses what it does not know
            raise ValueError(f"{place}: the chat template cannot write the messages: {cut(str(error), 200)}") from None
        assert self._adapter is not None
        token = self._tokenizer.convert_ids_to_tokens(self._adapter.image_token_id)
        texts = [part["text"] for part in parts if part["type"] == "text"]
        found = written.count(token) - sum(text.count(token) for text in texts)
        lost = next((text for text in texts if text.strip() not in written), None)
        if found != places or lost is not None:
            what = f"writes {found} image tokens {token}" if lost is None else f"leaves out {shorten(lost)}"
            raise ValueError(
                f"{place}: the chat template {what} for messages with {places} images; it is not that of an image "
                "model. Set tokenizer.chat_template to the one of the checkpoint's processor."
            )

    def _placeholder(self) -> str:
        """Returns the text of one image, as Qwen's chat template writes it where the tokenizer is Qwen's."""
        assert self._adapter is not None
        token: str = self._tokenizer.convert_ids_to_tokens(self._adapter.image_token_id)
        around = _AROUND if set(_AROUND) <= set(self._tokenizer.get_vocab()) else ("", "")
        return token.join(around)

    def _normalise_messages(self, messages: Any, place: str) -> list[dict[str, Any]]:
        if not isinstance(messages, list) or not messages:
            raise ValueError(f"{place}: messages is {shorten(messages)}; give a list with at least one message.")
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
                raise ValueError(f'{place}: messages[{i}] is {shorten(message)}; give {{"role": ..., "content": ...}}.')
        if messages[-1]["role"] == "assistant":
            raise ValueError(
                f"{place}: the last message is the assistant's; leave it out, targets are built from the other columns."
            )
        if not getattr(self._tokenizer, "chat_template", None):
            raise ValueError(
                f"{place}: messages need a chat template and {type(self._tokenizer).__name__} has none; "
                "set tokenizer.chat_template, or give prompt instead."
            )
        # The content of a message that calls tools may be null: the chat template writes the calls.
        return [
            dict(message)
            if message["content"] is None and message.get("tool_calls") and self._adapter is None
            else {**message, "content": self._normalise_content(message["content"], f"{place}: messages[{i}].content")}
            for i, message in enumerate(messages)
        ]

    def _normalise_content(self, content: Any, where: str) -> Any:
        if not isinstance(content, list | tuple):
            if not isinstance(content, str):
                raise ValueError(f"{where} is {shorten(content)}; give a text, or a list of parts.")
            if self._adapter is None:
                return content
            content = [{"type": "text", "text": content}]
        parts: list[dict[str, str]] = []
        for i, part in enumerate(content):
            parts += self._normalise_part(part, f"{where}[{i}]")
        if self._adapter is None:
            return "".join(part["text"] for part in parts)
        return parts

    def _normalise_part(self, part: Any, where: str) -> list[dict[str, str]]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text: str = part["text"]
            if self._adapter is None:
                return [{"type": "text", "text": text}]
            return _split(text)
        if kind == "image":
            if self._adapter is None:
                raise ValueError(
                    f"{where} is an image, but the model reads text alone; train an image model (docs/images.md), or "
                    "leave the images out."
                )
            held = sorted(key for key, value in part.items() if key != "type" and value is not None)
            if held:
                raise ValueError(
                    f'{where} holds {held[0]!r}; write {{"type": "image"}} and list the path in the column images, in '
                    "the order of the places."
                )
            return [{"type": "image"}]
        if isinstance(kind, str) and "video" in kind:
            raise ValueError(f"{where} is a video, which is refused: only images are trained.")
        raise ValueError(
            f'{where} is {shorten(part)}; give {{"type": "text", "text": ...}} or {{"type": "image"}}, or one text as '
            "the content."
        )


def _split(text: str) -> list[dict[str, str]]:
    """Returns the text as parts; `<image>` becomes a part of its own."""
    first, *others = text.split(PLACE)
    parts = [{"type": "text", "text": first}]
    for other in others:
        parts += [{"type": "image"}, {"type": "text", "text": other}]
    return [part for part in parts if part.get("text") != ""]
