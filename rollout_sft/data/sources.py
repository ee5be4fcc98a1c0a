"""Reads the rows of a source: a local file, by its suffix, or a data set that `datasets` loads.

    .jsonl            one JSON object a line
    .json             a list of objects, or one object a line
    .csv              a header and one row a line; cells of `messages`, `objects` and `images` hold JSON
    .parquet          one row a record
    anything else     the name or folder of a data set for `datasets.load_dataset`

A source with one of these suffixes, or that begins with `/`, `./`, `../` or `~`, is local: if it does not exist, no hub
is asked for it.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rollout_sft.config.shorten import cut, shorten
from rollout_sft.data.json_lines import DuplicateKeyError, check_value, first_repeated, read_json_lines, unique_keys

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
MAX_JSON_BYTES = 256 * 1024**2
"""Limits `.json` files, which are read whole."""
_LOCAL = re.compile(r"~|/|\.\.?/|[A-Za-z]:[\\/]")
_JSON_COLUMNS = ("messages", "objects", "images")
_OTHER_SUFFIXES = (".tsv", ".txt", ".xlsx", ".arrow", ".zip", ".gz", ".zst", ".npy", ".pkl", ".yaml", ".yml")

Row = tuple[str, Any]
"""The place of a row, for messages, and its value."""


def read_rows(source: str | Sequence[str], *, split: str = "train", name: str | None = None) -> Iterator[Row]:
    """
    Reads the rows of one source, or of several one after the other.

    Args:
        source (`str` or `Sequence[str]`):
            Files, or names for `datasets.load_dataset`.
        split, name (`str`, *optional*):
            Split and configuration name of a `datasets` data set; files have none.

    Returns:
        `Iterator[tuple[str, Any]]`: for each row its place, such as `file:line`, and its value.

    Raises:
        `ValueError`: a file is damaged or of another kind, or `datasets` cannot load the name; the message names it.
        `FileNotFoundError`: a local file does not exist.
    """
    check_sources(source)
    for one in names_of(source):
        path = local_path(one)
        if path is None or path.is_dir():
            yield from _read_datasets(one if path is None else str(path), split, name)
        else:
            yield from _READERS[_suffix(path)](path)


def check_sources(source: str | Sequence[str]) -> None:
    """Raises `FileNotFoundError` for a local file that is missing, and `ValueError` for what is never read."""
    for one in names_of(source):
        path = local_path(one)
        if "://" in one:
            raise ValueError(f"{cut(one, 200)}: addresses are not read; download the file and give its path.")
        if any(sign in one for sign in "*?[") and not _exists(path or Path(one)):
            raise ValueError(f"{cut(one, 200)}: patterns are not expanded; give a list of files.")
        if path is None:
            continue
        if not _exists(path):
            raise FileNotFoundError(
                f"{cut(str(path), 400)}: no such file; the path is taken from {cut(os.getcwd(), 200)}. It is a local "
                "path, so it is not looked up on a hub."
            )
        if not path.is_dir() and not path.is_file():
            raise ValueError(
                f"{cut(str(path), 200)}: a pipe or a device, which may never end; write its rows to a file first."
            )
        if not path.is_dir() and _suffix(path) not in _READERS:
            raise ValueError(
                f"{cut(str(path), 200)}: files of this kind are not read; give {', '.join(SUFFIXES[:-1])} or "
                f"{SUFFIXES[-1]}, or a function of your own, module:function."
            )


def names_of(source: str | Sequence[str]) -> list[str]:
    """Returns the sources as a list; raises `ValueError` for an empty one."""
    names = [source] if isinstance(source, str) else list(source)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"source is {shorten(source)}; it takes a file, the name of a data set, or a list of them.")
    return names


def local_path(source: str) -> Path | None:
    """Returns the path of a local source, `~` expanded; None for a name that `datasets` resolves."""
    if _LOCAL.match(source) or source.lower().endswith((*SUFFIXES, *_OTHER_SUFFIXES)):
        try:
            return Path(source).expanduser()
        except RuntimeError:  # the home of an unknown user
            return Path(source)
    path = Path(source)
    return path if _exists(path) and not path.is_dir() else None


def folder_of(source: str) -> Path:
    """Returns the folder that paths in a source's rows are relative to: its own, or the working directory."""
    path = local_path(source)
    if path is None:
        path = Path(source)
        return path if path.is_dir() else Path()
    return path if path.is_dir() else path.parent


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a path, or with a zero byte
        return False


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _read_json(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start.startswith(b"["):
        yield from read_json_lines(path)
        return
    place = cut(str(path), 200)
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(f"{place}: {size} bytes are more than the {MAX_JSON_BYTES} of a .json file; write .jsonl.")
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=unique_keys)
    except DuplicateKeyError as error:
        raise ValueError(f"{place}: {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: not UTF-8: {error.reason}; save the file as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON: {cut(str(error))}; give a list of objects.") from None
    for number, row in enumerate(rows):
        where = f"{path}[{number}]"
        check_value(row, cut(where, 200))
        yield where, row


def _read_csv(path: Path) -> Iterator[Row]:
    place = cut(str(path), 200)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            twice = first_repeated(reader.fieldnames or ())
            if twice is not None:
                raise ValueError(f"{place}:1: the header gives the column {shorten(twice)} twice; keep one.")
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    cells = sum(value is not None for key, value in row.items() if key is not None)
                    cells += len(row.get(None) or ())
                    raise ValueError(
                        f"{cut(where, 200)}: {cells} cells, but the header has {len(reader.fieldnames or ())}; quote "
                        'cells with commas or line ends, and write " as "".'
                    )
                yield where, {key: _cell(key, text, where) for key, text in row.items() if text != ""}
        except UnicodeDecodeError as error:
            raise ValueError(f"{place}: not UTF-8: {error.reason}; save the file as UTF-8.") from None
        except csv.Error as error:
            raise ValueError(f"{place}:{reader.line_num}: not CSV: {cut(str(error))}; write .jsonl instead.") from None


def _cell(column: str, text: str, where: str) -> Any:
    if column not in _JSON_COLUMNS:
        return text
    try:
        value = json.loads(text, object_pairs_hook=unique_keys)
    except DuplicateKeyError as error:
        raise ValueError(f"{cut(where, 200)}: column {column}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{cut(where, 200)}: column {column} is {shorten(text)}, which is not JSON: {cut(str(error))}."
        ) from None
    check_value(value, cut(where, 200))
    return value


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow  # comes with datasets
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            _check_names(file.schema_arrow, cut(str(path), 200))
            schema = file.schema_arrow
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", _without_none(_shortest_numbers(row, schema))
                    number += 1
    except pyarrow.ArrowException as error:
        raise ValueError(f"{cut(str(path), 200)}: not Parquet: {cut(str(error), 300)}") from None


def _check_names(fields: Any, place: str) -> None:
    """Raises `ValueError` for columns, or fields of an object in them, of one name; a row could hold one of them."""
    from pyarrow import types

    twice = first_repeated([field.name for field in fields])
    if twice is not None:
        raise ValueError(f"{place}: gives the name {shorten(twice)} twice; keep one.")
    for field in fields:
        kind = field.type
        while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            kind = kind.value_type
        if types.is_struct(kind):
            _check_names(list(kind), place)


def _read_datasets(source: str, split: str, name: str | None) -> Iterator[Row]:
    from datasets import load_dataset

    try:
        rows: Iterable[Any] = _undecoded(load_dataset(source, name, split=split))
    except Exception as error:  # offline, an unknown name, an unknown split, ...
        why = f"(split {shorten(split)}): {type(error).__name__}: {cut(str(error), 300)}"
        if Path(source).is_dir():
            raise ValueError(
                f"{cut(source, 200)} is a folder, and datasets cannot load it as a data set; list its files instead "
                f"{why}"
            ) from error
        raise ValueError(
            f"{cut(source, 200)} is no local file, and datasets cannot load it as a data set {why}"
        ) from error
    features = getattr(rows, "features", None)
    for number, row in enumerate(rows):
        short = _shortest_numbers(row, features.arrow_schema) if features else row
        yield f"{source}[{split}], row {number}", _without_none(short)


def _undecoded(rows: Any) -> Any:
    """Keeps images as encoded bytes or paths, which take a hundredth of the memory of their pixels."""
    from datasets import Image, List

    feature = (getattr(rows, "features", None) or {}).get("images")
    if isinstance(getattr(feature, "feature", None), Image):
        return rows.cast_column("images", List(Image(decode=False)))
    return rows


def _shortest_numbers(row: dict[str, Any], schema: Any) -> dict[str, Any]:
    """
    Returns a row whose `objects` hold the shortest number for each one of a float32 or float16 column: 2.1, and not
    2.0999999046325684. The type of the column decides: a value of a float64 column stays what it is.
    """
    at = schema.get_field_index("objects")
    return row if at < 0 else {**row, "objects": _shortest(row.get("objects"), schema.field(at).type)}


def _shortest(value: Any, kind: Any) -> Any:
    import pyarrow.types as types

    if value is None:
        return None
    if types.is_struct(kind) and isinstance(value, dict):
        return {name: _shortest(inner, kind.field(name).type) for name, inner in value.items()}
    if types.is_nested(kind) and isinstance(value, list) and hasattr(kind, "value_type"):
        return [_shortest(inner, kind.value_type) for inner in value]
    if types.is_float32(kind) or types.is_float16(kind):
        return float(str((np.float32 if types.is_float32(kind) else np.float16)(value)))
    return value


def _without_none(row: dict[str, Any]) -> dict[str, Any]:
    """Every row of a table has every column; a value that the row does not give is None."""
    return {key: value for key, value in row.items() if value is not None}


_READERS = {".jsonl": read_json_lines, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
