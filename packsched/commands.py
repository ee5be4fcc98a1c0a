"""Defines the three commands and prints what they find; `packsched.cli` runs them."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from packsched.advise import LEAST_INFEASIBLE, advise
from packsched.candidates import MICRO_STEPS, best, candidates, enough_segments, packing_lengths_for, yaml_of
from packsched.errors import PackingError
from packsched.lengths import count_tokens, load_tokenizer, read_records
from packsched.replay import replay, replays
from packsched.report import Report, headline, simulated_lines, table, what_to_do, words
from packsched.simulate import simulate_ranks
from packsched.steps import cut_steps
from packsched.traces import Trace, TraceError, read_trace

commands = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="See what packing does to your lengths, before you train.",
)

PLOTS = (".png", ".svg", ".pdf", ".html")


def _in_a_folder(path: Path | None) -> Path | None:
    """Refuses a file that cannot be written, before anything is computed for it."""
    if path is not None and not path.parent.is_dir():
        raise typer.BadParameter(f"{path}: there is no folder {path.parent}.")
    return path


def _a_plot(path: Path | None) -> Path | None:
    if path is not None and path.suffix not in PLOTS:
        raise typer.BadParameter(f"{path}: the name must end in {', '.join(PLOTS)}.")
    return _in_a_folder(path)


TraceFile = Annotated[
    str,
    typer.Argument(help="A length on each line, JSON lines, CSV, .npy or .parquet; - reads standard input."),
]
Column = Annotated[str, typer.Option(help="Column of the lengths.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Seed = Annotated[int, typer.Option(help="Seed of the draws.")]


@commands.command("replay")
def replay_command(
    trace: TraceFile,
    packing_length: Annotated[int, typer.Option(min=1, help="Hard cap of a pack, in tokens.")],
    micro_steps: Annotated[int, typer.Option(min=1, help="Packs of a window: gradient accumulation steps.")],
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Segments of a micro-batch; without it, the one that advise finds.")
    ] = None,
    column: Column = "length",
    window_column: Annotated[str, typer.Option(help="Column of the windows, if the trace has one.")] = "window",
    rank_column: Annotated[str, typer.Option(help="Column of the ranks, if the trace has one.")] = "rank",
    packing_buffer: Annotated[int, typer.Option(min=1, help="Most segments in a carry buffer of scope micro.")] = 512,
    ranks: Annotated[
        int | None, typer.Option(min=2, help="Simulate scope global on this many ranks, with lengths of the trace.")
    ] = None,
    simulated_windows: Annotated[int, typer.Option(min=1, help="Windows to simulate with --ranks.")] = 10,
    seed: Seed = 0,
    plot: Annotated[
        Path | None, typer.Option(callback=_a_plot, help="Write a picture (.png, .svg, .pdf) or a page (.html).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replay a trace of lengths under every scope, policy and objective."""
    with _user_errors():
        read = read_trace(trace, column=column, window_column=window_column, rank_column=rank_column)
        read.check_fits(packing_length)
        if read.windows is not None and batch_size is not None:
            raise TraceError(
                f"{read.source}: has windows in column {window_column!r}, so --batch-size {batch_size} has no meaning. "
                "Leave it out, or name another --window-column."
            )
        if read.windows is None and batch_size is None:
            batch_size = advise(read.encoded_lens, packing_length, micro_steps, seed=seed).batch_size
        report = _replayed(read, packing_length, micro_steps, batch_size, packing_buffer)
        if ranks is not None:
            report = _with_ranks(report, read, ranks, simulated_windows, seed)
        if plot is not None:
            _draw(report, plot)
        if as_json:
            _print_json(_as_dict(report))
        else:
            _print_report(report)


@commands.command("advise")
def advise_command(
    trace: TraceFile,
    packing_length: Annotated[
        list[int] | None, typer.Option(min=1, help="Packing length to try; may be repeated.  [default: three]")
    ] = None,
    micro_steps: Annotated[
        list[int] | None, typer.Option(min=1, help="Gradient accumulation steps to try; may be repeated.")
    ] = None,
    fill: Annotated[float, typer.Option(help="Mean fill of the packs to aim for.")] = 0.9,
    infeasible: Annotated[
        float, typer.Option(help=f"Fewer windows than this share may not fit; from {LEAST_INFEASIBLE}.")
    ] = 1e-4,
    longest: Annotated[
        int | None, typer.Option(min=1, help="The longest segment there can be; without it, a whole pack.")
    ] = None,
    column: Column = "length",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Find the batch size, gradient accumulation and packing length that fill the packs."""
    with _user_errors():
        read = read_trace(trace, column=column)
        lens = read.encoded_lens.tolist()
        caps = packing_length or packing_lengths_for(longest or max(lens))
        read.check_fits(min(caps))
        steps = micro_steps or list(MICRO_STEPS)
        with _progress("draws windows", len(caps) * len(steps)) as advance:
            found = candidates(
                lens,
                packing_lengths=caps,
                micro_steps=steps,
                target=fill,
                infeasible=infeasible,
                longest=longest,
                seed=seed,
                advance=advance,
            )
        chosen = best(found)
        enough = None
        if not chosen.reaches:
            enough = enough_segments(lens, chosen, target=fill, infeasible=infeasible, longest=longest, seed=seed)
        if as_json:
            _print_json(
                {
                    "candidates": [dataclasses.asdict(candidate) for candidate in found],
                    "recommended": dataclasses.asdict(chosen),
                    "yaml": yaml_of(chosen),
                    "enough_segments": enough,
                }
            )
            return
        out = _console()
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
                f"[bold]This trace is too short for advice:[/bold] it has {len(lens):,} segments. The batch sizes "
                "above are safe, but the longer segments that may still come decide them, not the lengths seen. Give "
                f"at least {enough:,} segments, or --longest if you know the longest segment there can be."
            )
            return
        if not chosen.reaches:
            out.print(f"None reaches a fill of {fill} with less than {share} infeasible; -> comes closest.")
        out.print(
            f"The packs are {chosen.fill:.0%} full on average, and less than {share} of a rank is infeasible. This "
            f"holds for 95 of 100 traces of {len(lens):,} segments, if segments are drawn independently. It counts "
            f"{min(1, 3 / len(lens)):.2%} of the segments as {'a pack' if longest is None else f'{longest:,} tokens'} "
            "long, because a trace of this size cannot rule them out."
        )
        if not chosen.reaches:
            out.print(
                "Fuller packs: a longer trace, more --micro-steps, --longest if you know the longest segment there can "
                "be, or --infeasible 0.01 with on_infeasible: extra_steps, which trains windows that do not fit."
            )
        out.print("\nTo paste:\n")
        out.print(yaml_of(chosen), markup=False, highlight=False, end="")


@commands.command("lengths")
def lengths_command(
    data: Annotated[str, typer.Argument(help="A .jsonl file, or the name or folder of a data set of datasets.")],
    tokenizer: Annotated[
        str, typer.Option(help="Name or folder of a tokenizer of transformers, or your module:function.")
    ],
    split: Annotated[str, typer.Option(help="Split of a data set.")] = "train",
    column: Annotated[
        list[str] | None, typer.Option(help="Column to count; may be repeated.  [default: messages, prompt, text]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(callback=_in_a_folder, help="Write the trace here instead of standard output.")
    ] = None,
) -> None:
    """Count the tokens of a data set's records; the result is a trace."""
    with _user_errors():
        counted = count_tokens(read_records(data, split=split), load_tokenizer(tokenizer), column or ())
        lens = []
        with _progress("counts records", None) as advance:
            for count in counted:
                lens.append(count)
                advance()
        if not lens:
            raise TraceError(f"{data}: holds no records.")
        lines = "".join(f'{{"length": {count}}}\n' for count in lens)
        if out is None:
            sys.stdout.write(lines)
        else:
            out.write_text(lines)
        ordered = sorted(lens)
        _console(stderr=True).print(
            f"{len(lens):,} records, {sum(lens):,} tokens: mean {sum(lens) / len(lens):,.0f}, "
            f"median {ordered[len(lens) // 2]:,}, 90 % up to {ordered[ceil(0.9 * len(lens)) - 1]:,}, "
            f"longest {ordered[-1]:,}." + ("" if out is None else f" Next: packsched advise {out}")
        )


def _replayed(read: Trace, cap: int, micro_steps: int, batch_size: int | None, packing_buffer: int) -> Report:
    steps = cut_steps(
        read.encoded_lens, micro_steps=micro_steps, batch_size=batch_size, windows=read.windows, ranks=read.ranks
    )
    with _progress("replays windows", replays(steps)) as advance:
        rows = replay(steps, cap, packing_buffer=packing_buffer, advance=advance)
    return Report(
        trace=read.source,
        packing_length=cap,
        micro_steps=micro_steps,
        batch_size=batch_size,
        packing_buffer=packing_buffer,
        steps=steps,
        rows=rows,
    )


def _with_ranks(report: Report, read: Trace, ranks: int, windows: int, seed: int) -> Report:
    # A trace with windows says itself how many segments a rank has; whole micro-batches come closest.
    of_a_rank = len(read) / (len(report.steps) * report.ranks * report.micro_steps)
    with _progress("simulates windows", windows) as advance:
        simulated = simulate_ranks(
            read.encoded_lens,
            report.packing_length,
            report.micro_steps,
            batch_size=report.batch_size or max(1, round(of_a_rank)),
            ranks=ranks,
            steps=windows,
            seed=seed,
            advance=advance,
        )
    return dataclasses.replace(report, simulated=simulated)


def _draw(report: Report, target: Path) -> None:
    from packsched.plots import draw

    draw(report, target)
    _console(stderr=True).print(f"written: {escape(str(target))}", highlight=False)


def _print_report(report: Report) -> None:
    out = _console()
    out.print(f"[bold]{escape(report.trace)}[/bold]\n{headline(report)}", highlight=False)
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


def _print_pairs(out: Console, pairs: list[tuple[str, str]], style: str) -> None:
    grid = Table(box=None, padding=(0, 1), show_header=False)
    grid.add_column(style="bold")
    grid.add_column(style=style)
    for name, meaning in pairs:
        grid.add_row(name, meaning)
    out.print(grid)


def _as_dict(report: Report) -> dict[str, Any]:
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


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def _console(stderr: bool = False) -> Console:
    return Console(stderr=stderr, width=None if sys.stdout.isatty() else 100, soft_wrap=False)


@contextmanager
def _progress(what: str, total: int | None) -> Iterator[Callable[[], object]]:
    """Shows a bar on the terminal while work is done; nothing where standard error is a file."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def _user_errors() -> Iterator[None]:
    """Ends the command with the message alone where the trace or an argument is at fault."""
    try:
        yield
    except (TraceError, PackingError) as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/bold red] {escape(str(error))}", highlight=False)
        raise typer.Exit(2) from None
