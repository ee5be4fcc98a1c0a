"""Counts the tokens of a data set's records with a tokenizer. transformers and datasets are imported when needed."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

from packsched.files import DuplicateNameError, FileError, one_line, refusing, unique_keys
from packsched.traces import listed

DEFAULT_COLUMNS = (("messages",), ("prompt", "completion"), ("prompt",), ("text",))
"""Columns that are counted unless they are named: the first of these that a record has."""
FILES = {".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""Files that `datasets` reads, and the names of their readers."""
AT_A_TIME = 1_000
"""Records that are handed to the tokenizer at once."""

IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""What names a function: `module:function`."""

Text = tuple[str, str]
"""The place of a record, for messages, and its text."""
Placed = tuple[str, Mapping[str, Any]]
"""A record, and its place for messages."""


def read_records(source: str, *, split: str = "train") -> Iterator[Placed]:
    """Reads the records of a data set.

    Args:
        source: Path of a .jsonl, .json, .csv or .parquet file, or what `datasets.load_dataset` takes: a name, or the
            path of a folder.
        split: The split of a data set; a file has none.

    Raises:
        FileError: The file does not exist, or a line is not a JSON object.
    """
    with refusing(f"{source}: cannot be read"):
        path = Path(source).expanduser()
    if path.suffix == ".jsonl":
        try:
            with path.open(encoding="utf-8-sig") as file:
                for number, line in enumerate(file, 1):
                    yield f"{source}, line {number}", _object(line, f"{source}, line {number}")
        except UnicodeDecodeError as error:
            raise FileError(f"{source}: not UTF-8 text ({error.reason} at byte {error.start}).") from None
        except (OSError, ValueError) as error:  # the path may be none, as one with a zero byte
            if isinstance(error, FileError):
                raise
            raise FileError(f"{source}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None
        return
    try:
        import datasets
    except ImportError:
        raise FileError(
            f"{source} is not a .jsonl file, and other data are read by datasets, which is not installed. Install it: "
            "pip install datasets"
        ) from None
    reader = FILES.get(path.suffix)
    if reader is not None and not path.is_file():
        raise FileError(f"{source}: cannot be read: No such file.")
    # It would print beside the command's own lines, and columns' names unescaped.
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    what = f"{source}: datasets does not read it (split {split!r})"
    with refusing(what):
        if reader is None:
            data = datasets.load_dataset(source, split=split)
        else:
            data = datasets.load_dataset(reader, data_files=str(path), split="train")
        records = iter(data)
    for number in count(1):
        with refusing(what):
            record = next(records, None)
        if record is None:
            return
        yield f"{source}, record {number}", record


def load_tokenizer(name: str) -> Any:
    """Loads a tokenizer.

    Args:
        name: A name or folder that transformers knows, or `module:function` of a function without arguments that
            returns a tokenizer. The module is looked for in the working directory and among the installed packages.

    Raises:
        FileError: transformers is not installed, or there is no such tokenizer.
    """
    if IMPORT_PATH.fullmatch(name):
        return _made_by(name)
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise FileError(
            "counting tokens needs transformers, which is not installed. Install it: pip install transformers"
        ) from None
    with refusing(f"--tokenizer {name}"):
        return AutoTokenizer.from_pretrained(name)


def _made_by(path: str) -> Any:
    module, _, function = path.partition(":")
    if os.getcwd() not in sys.path:  # a console script does not look there, as `python -m` does
        sys.path.insert(0, os.getcwd())
    try:
        make = getattr(importlib.import_module(module), function)
        made = make()
    except Exception as error:  # the user's module may raise anything
        raise FileError(
            f"--tokenizer {path} gives no tokenizer: {type(error).__name__}: {one_line(error)}. It takes "
            "module:function of a function without arguments; modules are looked for in the working directory and "
            "among the installed packages."
        ) from None
    if not callable(made):
        raise FileError(f"--tokenizer {path} returned a {type(made).__name__}; it takes a tokenizer of transformers.")
    return made


def count_tokens(records: Iterable[Placed], tokenizer: Any, columns: Sequence[str] = ()) -> Iterator[int]:
    """Counts the tokens of each record, in order.

    Args:
        records: What `read_records` gives.
        tokenizer: A tokenizer of transformers.
        columns: The columns that are counted, joined; by default the first of `messages`, `prompt` and `completion`,
            `prompt`, `text` that a record has. A text is encoded as it is, with the tokenizer's special tokens;
            messages pass through its chat template, which adds the beginning of an answer where the last message is
            not the assistant's; token ids are counted.

    Raises:
        FileError: A record lacks the columns, holds something else in them, or has no token.
    """
    source = iter(records)
    while chunk := list(islice(source, AT_A_TIME)):
        texts: dict[bool, list[Text]] = {True: [], False: []}
        counts: list[tuple[bool | None, int]] = []
        for place, record in chunk:
            named = _values(place, record, columns)
            values = list(named.values())
            if all(isinstance(value, str) for value in values):
                counts.append((True, len(texts[True])))
                texts[True].append((place, "".join(values)))
            elif all(_is_list_of(value, int) for value in values):
                counts.append((None, sum(map(len, values))))
            elif all(_is_list_of(value, dict) for value in values):
                counts.append((False, len(texts[False])))
                messages = [message for value in values for message in value]
                texts[False].append((place, _templated(place, messages, tokenizer)))
            else:
                raise FileError(f"{place}: {_not_counted(named)}")
        encoded = {special: _encoded(given, tokenizer, special) for special, given in texts.items()}
        for (place, _), (special, number) in zip(chunk, counts, strict=True):
            length = number if special is None else encoded[special][number]
            if length < 1:
                raise FileError(f"{place}: has no tokens; leave it out, since a segment has at least 1.")
            yield length


def _encoded(texts: list[Text], tokenizer: Any, special: bool) -> list[int]:
    """Returns the lengths of texts; a text that the tokenizer refuses is named."""
    if not texts:
        return []
    try:
        return [len(ids) for ids in tokenizer([text for _, text in texts], add_special_tokens=special)["input_ids"]]
    except Exception as error:  # a tokenizer may be the user's own; none takes half of a surrogate pair
        if len(texts) == 1:
            raise FileError(f"{texts[0][0]}: the tokenizer refuses the text: {one_line(error)}") from None
        return [length for one in texts for length in _encoded([one], tokenizer, special)]


def _object(line: str, place: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line, object_pairs_hook=unique_keys)
    except DuplicateNameError as error:
        raise FileError(f"{place}: {error}") from None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise FileError(f"{place}: not a JSON object; give one object per line.")
    return record


def _values(place: str, record: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    for wanted in [columns] if columns else DEFAULT_COLUMNS:
        if all(name in record for name in wanted):
            return {name: record[name] for name in wanted}
    missing = ", ".join(columns) if columns else "messages, prompt or text"
    raise FileError(f"{place}: has no {missing}; it has {listed(record)}. Name the columns to count with --column.")


def _not_counted(values: Mapping[str, Any]) -> str:
    for name, value in values.items():
        if value is None:
            return f"column {name!r} is empty; leave the record out, or name other columns with --column."
    kinds = ", ".join(f"column {name!r} holds {type(value).__name__}" for name, value in values.items())
    return f"{kinds}; give texts, lists of messages or lists of token ids, the same in all columns."


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(part, kind) for part in value)


def _templated(place: str, messages: list[Any], tokenizer: Any) -> str:
    try:
        asks = messages[-1]["role"] != "assistant"
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks))
    except Exception as error:  # a template is a program of the model's authors and may raise anything
        raise FileError(f"{place}: the tokenizer's chat template refuses the messages: {one_line(error)}") from None
