"""Defines the three commands; `packsched.terminal` prints what they find, and `packsched.cli` runs them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from packsched.advise import LEAST_INFEASIBLE, advise
from packsched.candidates import MICRO_STEPS, best, candidates, enough_segments, packing_lengths_for, yaml_of
from packsched.errors import PackingError
from packsched.files import FileError, printable, write_file
from packsched.lengths import count_tokens, load_tokenizer, read_records
from packsched.replay import replay, replays
from packsched.report import Report, counted
from packsched.simulate import simulate_ranks
from packsched.steps import cut_steps
from packsched.terminal import as_dict, console, print_candidates, print_error, print_json, print_report, progress
from packsched.traces import Trace, read_trace

commands = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="See what packing does to your lengths, before you train.",
)

PLOTS = (".png", ".svg", ".pdf", ".html")


def _in_a_folder(path: Path | None) -> Path | None:
    """Refuses a file that cannot be written, before anything is computed for it."""
    try:
        if path is not None and not path.parent.is_dir():
            raise typer.BadParameter(f"{path}: there is no folder {path.parent}.")
        if path is not None and path.is_dir():
            raise typer.BadParameter(f"{path}: a folder; give a file's name.")
    except (OSError, ValueError) as error:  # no right to look, or a name that is too long
        raise typer.BadParameter(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}.") from None
    return path


def _plots(paths: list[Path] | None) -> list[Path] | None:
    for path in paths or ():
        if path.suffix not in PLOTS:
            raise typer.BadParameter(f"{path}: the name must end in {', '.join(PLOTS)}.")
        _in_a_folder(path)
    return paths


TraceFile = Annotated[
    str,
    typer.Argument(help="A length on each line, JSON lines, CSV, .npy or .parquet; - reads standard input."),
]
Column = Annotated[str, typer.Option(help="Column of the lengths.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the draws.")]


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
        list[Path] | None,
        typer.Option(callback=_plots, help="Write a picture (.png, .svg, .pdf) or a page (.html); may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replay a trace of lengths under every scope, policy and objective."""
    with _user_errors():
        read = read_trace(trace, column=column, window_column=window_column, rank_column=rank_column)
        read.check_fits(packing_length)
        if read.windows is not None and batch_size is not None:
            raise FileError(
                f"{read.source}: has windows in column {window_column!r}, so --batch-size {batch_size} has no meaning. "
                "Leave it out, or name another --window-column."
            )
        if read.windows is None and batch_size is None:
            batch_size = advise(read.encoded_lens, packing_length, micro_steps, seed=seed).batch_size
        report = _replayed(read, packing_length, micro_steps, batch_size, packing_buffer)
        report = dataclasses.replace(report, column=column)
        if ranks is not None:
            report = _with_ranks(report, read, ranks, simulated_windows, seed)
        for target in plot or ():
            _draw(report, target)
        if as_json:
            print_json(as_dict(report))
        else:
            print_report(report)


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
        with progress("draws windows", len(caps) * len(steps)) as advance:
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
            print_json(
                {
                    "candidates": [dataclasses.asdict(candidate) for candidate in found],
                    "recommended": dataclasses.asdict(chosen),
                    "yaml": yaml_of(chosen),
                    "enough_segments": enough,
                }
            )
            return
        print_candidates(
            found, chosen, segments=len(lens), target=fill, infeasible=infeasible, longest=longest, enough=enough
        )


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
        counts = count_tokens(read_records(data, split=split), load_tokenizer(tokenizer), column or ())
        lens = []
        with progress("counts records", None) as advance:
            for count in counts:
                lens.append(count)
                advance()
        if not lens:
            raise FileError(f"{data}: holds no records.")
        lines = "".join(f'{{"length": {count}}}\n' for count in lens)
        if out is None:
            sys.stdout.write(lines)
        else:
            write_file(out, lines.encode())
        ordered = sorted(lens)
        console(stderr=True).print(
            f"{counted(len(lens), 'record')}, {counted(sum(lens), 'token')}: mean {sum(lens) / len(lens):,.0f}, "
            f"median {ordered[len(lens) // 2]:,}, 90 % up to {ordered[ceil(0.9 * len(lens)) - 1]:,}, "
            f"longest {ordered[-1]:,}." + ("" if out is None else f" Next: packsched advise {escape(str(out))}")
        )


def _replayed(read: Trace, cap: int, micro_steps: int, batch_size: int | None, packing_buffer: int) -> Report:
    steps = cut_steps(
        read.encoded_lens, micro_steps=micro_steps, batch_size=batch_size, windows=read.windows, ranks=read.ranks
    )
    with progress("replays windows", replays(steps)) as advance:
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
    with progress("simulates windows", windows) as advance:
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
    console(stderr=True).print(f"written: {escape(printable(str(target)))}", highlight=False)


@contextmanager
def _user_errors() -> Iterator[None]:
    """Ends the command with the message alone where the trace or an argument is at fault."""
    try:
        yield
    except (FileError, PackingError) as error:
        print_error(str(error))
        raise typer.Exit(2) from None
