"""Reads length traces: one segment per line, with its length in tokens and, if known, its window and its rank.

- Text (a file, or `-` for standard input): JSON lines, each a number or an object, or a CSV file with a header. The
  first line decides: it is a header unless it is a number or starts with `{`.
- `.npy`: one column of integers, or a structured array whose fields are the columns.
- `.parquet`: read by pyarrow, which extra `cli` installs.

Every line counts: a bad one is refused with the file, the line and the value, and none is left out. Blank lines at the
end of a text are no lines of the trace.
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

_MOST = 2**62
_WAYS = "give one number or one JSON object per line, or a CSV file with a header"


class TraceError(ValueError):
    """Refuses a trace: the message names the file, the line and the value."""


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
        """Raises `TraceError` if a segment is longer than `packing_length`. O(n)."""
        too_long = np.flatnonzero(self.encoded_lens > packing_length)
        if len(too_long):
            longest = int(self.encoded_lens.max())
            raise TraceError(
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
        TraceError: The file is missing, empty or damaged, lacks the column, or holds a value that is not a whole
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
    except OSError as error:
        raise TraceError(f"{source}: cannot be read: {error.strerror or error}.") from None


def _read_text(source: str, file: IO[bytes], names: Sequence[str]) -> Trace:
    text = TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        first = text.readline()
        lines = _without_blank_end(chain([first], text))
        if not first.strip() or first.lstrip()[0] == "{" or _is_number(first):
            return _trace(source, *_columns_of_json(source, lines, names))
        if first.lstrip()[0] == "[":
            raise TraceError(f"{source}, line 1: starts a JSON list; {_WAYS}.")
        delimiter = max(",;\t", key=first.count)
        return _trace(source, *_columns_of_csv(source, lines, names, delimiter))
    except UnicodeDecodeError as error:
        raise TraceError(f"{source}: not UTF-8 text ({error.reason} at byte {error.start}); {_WAYS}.") from None
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
            value = json.loads(line)
        except (ValueError, RecursionError):
            what = f"{_short(line.strip())} is not JSON" if line.strip() else "the line is empty"
            raise TraceError(f"{place}: {what}; {_WAYS}.") from None
        record = value if isinstance(value, dict) else {names[0]: value}
        if names[0] not in record:
            raise TraceError(_without_column(place, names[0], record))
        here = {name for name in names if name in record}
        if number == 1:
            given = here
        elif here != given:
            other = sorted(here ^ given)[0]
            now, before = ("gives", "do not") if other in here else ("lacks", "have it")
            raise TraceError(f"{place}: {now} {other!r}, and the lines before {before}; give it in all lines or none.")
        for name, column in zip(names, columns, strict=True):
            if name in here:
                column.append(_whole(record[name], name, place))
    return columns, np.arange(1, len(columns[0]) + 1)


def _columns_of_csv(
    source: str, lines: Iterable[str], names: Sequence[str], delimiter: str
) -> tuple[list[list[int]], NDArray[np.int64]]:
    rows = csv.reader(lines, delimiter=delimiter)
    header = [cell.strip() for cell in next(rows)]
    if names[0] not in header:
        raise TraceError(_without_column(f"{source}, line 1", names[0], header))
    columns: list[list[int]] = [[], [], []]
    wanted = [(header.index(name), name, column) for name, column in zip(names, columns, strict=True) if name in header]
    numbers = []
    try:
        for row in rows:
            place = f"{source}, line {rows.line_num}"
            if len(row) != len(header):
                raise TraceError(f"{place}: has {len(row)} cells, and the header has {len(header)}.")
            numbers.append(rows.line_num)
            for at, name, column in wanted:
                cell = row[at].strip()
                column.append(
                    _whole(int(cell) if len(cell) < 20 and cell.removeprefix("-").isdecimal() else cell, name, place)
                )
    except csv.Error as error:
        raise TraceError(f"{source}, line {rows.line_num}: not CSV: {error}.") from None
    return columns, np.array(numbers, dtype=np.int64)


def _read_npy(source: str, names: Sequence[str]) -> Trace:
    try:
        array = np.load(source, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise TraceError(f"{source}: not a .npy file of integers: {error}") from None
    if array.ndim != 1:
        raise TraceError(f"{source}: has shape {array.shape}; a trace is one column: give a 1-d array.")
    fields = array.dtype.names
    if fields is None:
        return _trace(source, [array, [], []])
    if names[0] not in fields:
        raise TraceError(_without_column(source, names[0], fields))
    return _trace(source, [array[name] if name in fields else [] for name in names])


def _read_parquet(source: str, names: Sequence[str]) -> Trace:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise TraceError(f"{source}: reading parquet needs pyarrow. Install it: pip install 'packsched[cli]'") from None
    try:
        file = parquet.ParquetFile(source)
    except arrow.ArrowInvalid as error:
        raise TraceError(f"{source}: not a parquet file: {error}") from None
    given = file.schema_arrow.names
    if names[0] not in given:
        raise TraceError(_without_column(source, names[0], given))
    table = file.read(columns=[name for name in names if name in given])
    for name in table.column_names:
        if nulls := table[name].null_count:
            raise TraceError(f"{source}: column {name!r} has no value in {nulls} of {len(table)} rows.")
    return _trace(source, [table[name].to_numpy() if name in given else [] for name in names])


def _trace(source: str, columns: Sequence[Any], lines: NDArray[np.int64] | None = None) -> Trace:
    lens, windows, ranks = [np.asarray(column) if len(column) else None for column in columns]
    if lens is None:
        raise TraceError(f"{source}: holds no segments; {_WAYS}.")
    for name, column in (("length", lens), ("window", windows), ("rank", ranks)):
        if column is not None and not np.issubdtype(column.dtype, np.integer):
            raise TraceError(f"{source}: the column of {name}s holds {column.dtype}; give whole numbers.")
    if lens.min() < 1:
        at = int(np.argmax(lens < 1))
        raise TraceError(f"{_place(source, lines, at)}: the length is {lens[at]}; a segment has at least 1 token.")
    lens, windows, ranks = [None if column is None else column.astype(np.int64) for column in (lens, windows, ranks)]
    assert lens is not None
    return Trace(source=source, encoded_lens=lens, windows=windows, ranks=ranks, lines=lines)


def _whole(value: Any, name: str, place: str) -> int:
    if type(value) is not int or not -_MOST < value < _MOST:
        raise TraceError(f"{place}: {name} is {_short(value)}; give a whole number.")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _without_column(place: str, column: str, given: Iterable[str]) -> str:
    names = list(given)
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return f"{place}: has no column {column!r}; it has {shown}. Name the column of the lengths with --column."


def _place(source: str, lines: NDArray[np.int64] | None, at: int) -> str:
    return f"{source}, index {at}" if lines is None else f"{source}, line {lines[at]}"
