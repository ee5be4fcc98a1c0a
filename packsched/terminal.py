"""Prints on the terminal what the commands found, as tables or as JSON, and shows how far they are.

Everything that the commands print goes through `console`, `print_error` or `print_json`, which escape the control
characters that names in a trace may hold.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from packsched.candidates import Candidate, yaml_of
from packsched.files import printable
from packsched.report import Report, counted, headline, simulated_lines, table, what_to_do, words


def print_report(report: Report) -> None:
    """Prints a replay: its table, the words in it, and what to do."""
    out = console()
    out.print(f"[bold]{escape(printable(report.trace))}[/bold]\n{headline(report)}", highlight=False)
    names, rows = table(report)
    grid = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for name in names:
        grid.add_column(name, justify="left" if name in ("scope", "rule") else "right", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    out.print()
    out.print(grid)
    out.print()
    _print_pairs(out, words(report), "dim")
    if report.simulated is not None:
        out.print(f"\n[bold]Scope global on {report.simulated.ranks} ranks, simulated[/bold]")
        _print_pairs(out, simulated_lines(report.simulated), "")
    out.print("\n[bold]What to do[/bold]")
    for line in what_to_do(report):
        out.print(f"- {line}", markup=False, highlight=False)


def print_candidates(
    found: Sequence[Candidate],
    chosen: Candidate,
    *,
    segments: int,
    target: float,
    infeasible: float,
    longest: int | None,
    enough: int | None,
) -> None:
    """Prints the candidates of `advise`, how sure they are, and the chosen one as YAML.

    Args:
        found: All candidates.
        chosen: One of them.
        segments: How many segments the trace has.
        target: The mean fill that was asked for.
        infeasible: The share of windows that need not fit.
        longest: The longest segment there can be, if that is known.
        enough: How many segments a trace needs for advice; None for a trace that has enough.
    """
    out = console()
    grid = Table(box=None, padding=(0, 2), header_style="bold")
    for name in ("", "packing length", "micro-steps (GA)", "batch size", "segments of a window", "fill"):
        grid.add_column(name, justify="right")
    for one in found:
        marks = (
            "->" if one is chosen else "",
            f"{one.packing_length:,}",
            str(one.micro_steps),
            str(one.batch_size),
        )
        grid.add_row(*marks, f"{one.segments:,}", f"{one.fill:.3f}", style="bold green" if one is chosen else None)
    out.print(grid)
    share = f"1 in {1 / infeasible:,.0f} windows"
    out.print()
    if enough is not None:
        out.print(
            f"[bold]This trace is too short for advice:[/bold] it has {counted(segments, 'segment')}. The batch sizes "
            "above are safe, but the longer segments that may still come decide them, not the lengths seen. Give "
            f"at least {enough:,} segments, or --longest if you know the longest segment there can be."
        )
        return
    if not chosen.reaches:
        out.print(f"None reaches a fill of {target} with less than {share} infeasible; -> comes closest.")
    out.print(
        f"The packs are {chosen.fill:.0%} full on average, and less than {share} of a rank is infeasible. This "
        f"holds for 95 of 100 traces of {counted(segments, 'segment')}, if segments are drawn independently. It counts "
        f"{min(1, 3 / segments):.2%} of the segments as {'a pack' if longest is None else f'{longest:,} tokens'} "
        "long, because a trace of this size cannot rule them out."
    )
    if not chosen.reaches:
        out.print(
            "Fuller packs: a longer trace, more --micro-steps, --longest if you know the longest segment there can "
            "be, or --infeasible 0.01 with on_infeasible: extra_steps, which trains windows that do not fit."
        )
    out.print("\nTo paste:\n")
    out.print(yaml_of(chosen), markup=False, highlight=False, end="")


def as_dict(report: Report) -> dict[str, Any]:
    """Returns a replay for `--json`."""
    return {
        "trace": report.trace,
        "segments": sum(len(own) for step in report.steps for own in step.encoded_lens),
        "windows": len(report.steps),
        "ranks": report.ranks,
        "packing_length": report.packing_length,
        "micro_steps": report.micro_steps,
        "batch_size": report.batch_size,
        "packing_buffer": report.packing_buffer,
        "rows": [{**dataclasses.asdict(row), "means": row.fill.metrics()} for row in report.rows],
        "simulated": None if report.simulated is None else dataclasses.asdict(report.simulated),
    }


def print_json(value: dict[str, Any]) -> None:
    """Prints a value as JSON, for programs."""
    sys.stdout.write(json.dumps(value, indent=1).replace("\x7f", "\\u007f") + "\n")  # the one that json leaves


class EscapingConsole(Console):
    """Escapes control characters in everything that it prints; line ends stay."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Makes what rich prints for a text, in a sentence or in a table's cell."""
        return super().render_str(printable(text, keep="\n"), **options)


def console(stderr: bool = False) -> Console:
    """Returns what prints on standard output, or on standard error; 100 columns wide where no terminal reads it."""
    return EscapingConsole(stderr=stderr, width=None if sys.stdout.isatty() else 100, soft_wrap=False, emoji=False)


def print_error(message: str) -> None:
    """Prints why a command ends on standard error, in one line."""
    out = EscapingConsole(stderr=True, soft_wrap=True, emoji=False)
    out.print(f"[bold red]error:[/bold red] {escape(printable(message))}", highlight=False)


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[], object]]:
    """Shows a bar on the terminal while work is done; nothing where standard error is a file."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=EscapingConsole(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def _print_pairs(out: Console, pairs: list[tuple[str, str]], style: str) -> None:
    grid = Table(box=None, padding=(0, 1), show_header=False)
    grid.add_column(style="bold")
    grid.add_column(style=style)
    for name, meaning in pairs:
        grid.add_row(name, meaning)
    out.print(grid)
