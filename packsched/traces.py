"""Reads length traces: one segment per line, with its length in tokens and, if known, its window and its rank.

- Text (a file, or `-` for standard input): JSON lines, each a number or an object, or a CSV file with a header. The
  first line decides: it is a header unless it is a number or starts with `{`.
- `.npy`: one column of integers, or a structured array whose fields are the columns.
- `.parquet`: read by pyarrow, which extra `cli` installs.

Every line counts: a bad one is refused with the file, the line and the value, and none is left out. Blank lines at the
end of a text are no lines of the trace. A key or a column that is given twice is refused.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from packsched.arguments import holds_integers
from packsched.files import DuplicateNameError, FileError, check_unique, refusing, unique_keys

_MOST = 2**62
_WAYS = "give one number or one JSON object per line, or a CSV file with a header"


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Holds the lengths of segments in the order in which they were made.

    Attributes:
        source: The file, for messages.
        encoded_lens: Tokens of each segment.
        windows: The window (optimizer step) of each segment, if the trace tells.
        ranks: The rank of each segment, if the trace tells.
        lines: The line of each segment, counted from 1; None if the file has no lines.
    """

    source: str
    encoded_lens: NDArray[np.int64]
    windows: NDArray[np.int64] | None = None
    ranks: NDArray[np.int64] | None = None
    lines: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Returns the number of segments. O(1)."""
        return len(self.encoded_lens)

    def check_fits(self, packing_length: int) -> None:
        """Raises `FileError` if a segment is longer than `packing_length`. O(n)."""
        too_long = np.flatnonzero(self.encoded_lens > packing_length)
        if len(too_long):
            longest = int(self.encoded_lens.max())
            raise FileError(
                f"{_place(self.source, self.lines, int(too_long[0]))}: the segment has "
                f"{self.encoded_lens[too_long[0]]} tokens and packing_length is {packing_length}. {len(too_long)} of "
                f"{len(self)} segments ({len(too_long) / len(self):.2%}) are longer than a pack, and segments are "
                f"never split. Raise --packing-length to {longest}, or make shorter segments."
            )


def read_trace(
    source: str, *, column: str = "length", window_column: str = "window", rank_column: str = "rank"
) -> Trace:
    """Reads a trace.

    Args:
        source: Path of a text file (JSON lines or CSV), of a `.npy` or of a `.parquet` file; `-` is standard input.
        column: Name of the column that holds the lengths.
        window_column: Name of the column that holds the windows; the file need not have it.
        rank_column: Name of the column that holds the ranks; the file need not have it.

    Returns:
        All segments of the file, in its order.

    Raises:
        FileError: The file is missing, empty or damaged, lacks the column, or holds a value that is not a whole
            number of at least 1 token.

    Cost: `O(n)`, about 2 s for a million JSON lines.
    """
    names = (column, window_column, rank_column)
    try:
        if source == "-":
            return _read_text("standard input", sys.stdin.buffer, names)
        if Path(source).suffix == ".npy":
            return _read_npy(source, names)
        if Path(source).suffix == ".parquet":
            return _read_parquet(source, names)
        with Path(source).open("rb") as file:
            return _read_text(source, file, names)
    except (OSError, ValueError) as error:  # the path may be none, as one with a zero byte
        if isinstance(error, FileError):
            raise
        raise FileError(f"{source}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _read_text(source: str, file: IO[bytes], names: Sequence[str]) -> Trace:
    text = TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        first = text.readline()
        lines = _without_blank_end(chain([first], text))
        if not first.strip() or first.lstrip()[0] == "{" or _is_number(first):
            return _trace(source, *_columns_of_json(source, lines, names))
        if first.lstrip()[0] == "[":
            raise FileError(f"{source}, line 1: starts a JSON list; {_WAYS}.")
        delimiter = max(",;\t", key=first.count)
        return _trace(source, *_columns_of_csv(source, lines, names, delimiter))
    except UnicodeDecodeError as error:
        raise FileError(f"{source}: not UTF-8 text ({error.reason} at byte {error.start}); {_WAYS}.") from None
    finally:
        text.detach()


def _without_blank_end(lines: Iterable[str]) -> Iterator[str]:
    blank: list[str] = []
    for line in lines:
        if line.strip(" \r\n"):  # a tab may separate the empty cells of a bad line
            yield from blank
            yield line
            blank.clear()
        else:
            blank.append(line)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _columns_of_json(
    source: str, lines: Iterable[str], names: Sequence[str]
) -> tuple[list[list[int]], NDArray[np.int64]]:
    columns: list[list[int]] = [[], [], []]
    given = {names[0]}
    for number, line in enumerate(lines, 1):
        place = f"{source}, line {number}"
        try:
            value = json.loads(line, object_pairs_hook=unique_keys)
        except DuplicateNameError as error:
            raise FileError(f"{place}: {error}") from None
        except (ValueError, RecursionError):
            what = f"{_short(line.strip())} is not JSON" if line.strip() else "the line is empty"
            raise FileError(f"{place}: {what}; {_WAYS}.") from None
        record = value if isinstance(value, dict) else {names[0]: value}
        if names[0] not in record:
            raise FileError(without_column(place, names[0], record))
        here = {name for name in names if name in record}
        if number == 1:
            given = here
        elif here != given:
            other = sorted(here ^ given)[0]
            now, before = ("gives", "do not") if other in here else ("lacks", "have it")
            raise FileError(f"{place}: {now} {other!r}, and the lines before {before}; give it in all lines or none.")
        for name, column in zip(names, columns, strict=True):
            if name in here:
                column.append(_whole(record[name], name, place))
    return columns, np.arange(1, len(columns[0]) + 1)


def _columns_of_csv(
    source: str, lines: Iterable[str], names: Sequence[str], delimiter: str
) -> tuple[list[list[int]], NDArray[np.int64]]:
    rows = csv.reader(lines, delimiter=delimiter)
    columns: list[list[int]] = [[], [], []]
    numbers = []
    try:
        header = [cell.strip() for cell in next(rows)]
        if names[0] not in header:
            raise FileError(without_column(f"{source}, line 1", names[0], header))
        check_unique(header, "column")
        wanted = [
            (header.index(name), name, column) for name, column in zip(names, columns, strict=True) if name in header
        ]
        for row in rows:
            place = f"{source}, line {rows.line_num}"
            if len(row) != len(header):
                raise FileError(f"{place}: has {len(row)} cells, and the header has {len(header)}.")
            numbers.append(rows.line_num)
            for at, name, column in wanted:
                cell = row[at].strip()
                column.append(
                    _whole(int(cell) if len(cell) < 20 and cell.removeprefix("-").isdecimal() else cell, name, place)
                )
    except DuplicateNameError as error:
        raise FileError(f"{source}, line 1: {error}") from None
    except csv.Error as error:
        raise FileError(f"{source}, line {rows.line_num}: not CSV: {error}.") from None
    return columns, np.array(numbers, dtype=np.int64)


def _read_npy(source: str, names: Sequence[str]) -> Trace:
    with refusing(f"{source}: not a .npy file of integers"):
        # Mapped, so that a header cannot ask for more memory than the file has bytes.
        array = np.load(source, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise FileError(f"{source}: holds several arrays, as a .npz file does; give one, as numpy.save writes it.")
    if array.ndim != 1:
        raise FileError(f"{source}: has shape {array.shape}; a trace is one column: give a 1-d array.")
    fields = array.dtype.names
    if fields is None:
        return _trace(source, [array, [], []])
    if names[0] not in fields:
        raise FileError(without_column(source, names[0], fields))
    return _trace(source, [array[name] if name in fields else [] for name in names])


def _read_parquet(source: str, names: Sequence[str]) -> Trace:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise FileError(f"{source}: reading parquet needs pyarrow. Install it: pip install 'packsched[cli]'") from None
    with refusing(f"{source}: not a parquet file"):
        file = parquet.ParquetFile(source)
        given = file.schema_arrow.names
    if names[0] not in given:
        raise FileError(without_column(source, names[0], given))
    try:
        check_unique(given, "column")
    except DuplicateNameError as error:
        raise FileError(f"{source}: {error}") from None
    with refusing(f"{source}: a damaged parquet file"):
        table = file.read(columns=[name for name in names if name in given])
        columns = [table[name] if name in given else None for name in names]
        nulls = [0 if column is None else column.null_count for column in columns]
        arrays = [[] if column is None else column.to_numpy() for column in columns]
    for name, missing in zip(names, nulls, strict=True):
        if missing:
            raise FileError(f"{source}: column {name!r} has no value in {missing} of {len(table)} rows.")
    return _trace(source, arrays)


def _trace(source: str, columns: Sequence[Any], lines: NDArray[np.int64] | None = None) -> Trace:
    lens, windows, ranks = [np.asarray(column) if len(column) else None for column in columns]
    if lens is None:
        raise FileError(f"{source}: holds no segments; {_WAYS}.")
    for name, column in (("length", lens), ("window", windows), ("rank", ranks)):
        if column is None:
            continue
        if column.ndim != 1 or not holds_integers(column):
            lists = " in lists" if column.ndim != 1 else ""
            raise FileError(f"{source}: the column of {name}s holds {column.dtype}{lists}; give whole numbers.")
        if column.max() > _MOST:
            raise FileError(f"{_place(source, lines, int(column.argmax()))}: the {name} is {column.max()}; too large.")
    if lens.min() < 1:
        at = int(np.argmax(lens < 1))
        raise FileError(f"{_place(source, lines, at)}: the length is {lens[at]}; a segment has at least 1 token.")
    lens, windows, ranks = [None if column is None else column.astype(np.int64) for column in (lens, windows, ranks)]
    assert lens is not None
    return Trace(source=source, encoded_lens=lens, windows=windows, ranks=ranks, lines=lines)


def _whole(value: Any, name: str, place: str) -> int:
    if type(value) is not int or not -_MOST < value < _MOST:
        raise FileError(f"{place}: {name} is {_short(value)}; give a whole number.")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def without_column(place: str, column: str, given: Iterable[str]) -> str:
    """Says that a column is missing, and which there are."""
    return f"{place}: has no column {column!r}; it has {listed(given)}. Name the column of the lengths with --column."


def listed(names: Iterable[str]) -> str:
    """Returns at most 12 names, each in at most 60 characters, and how many there are besides."""
    found = [name if len(name) <= 60 else f"{name[:57]}..." for name in names]
    return ", ".join(found[:12]) + (f" and {len(found) - 12} more" if len(found) > 12 else "")


def _place(source: str, lines: NDArray[np.int64] | None, at: int) -> str:
    return f"{source}, index {at}" if lines is None else f"{source}, line {lines[at]}"
