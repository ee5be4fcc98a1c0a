"""Says what a replay found, for terminals and pages: the rows of the table, its words explained, and what to do."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from packsched.replay import Replayed
from packsched.simulate import SimulatedRanks
from packsched.steps import Step


@dataclass(frozen=True, kw_only=True)
class Report:
    """Holds a replay and what it was made with.

    Attributes:
        trace: Name of the trace.
        packing_length: Hard cap of a pack, in tokens.
        micro_steps: Packs of a window.
        batch_size: Segments of a micro-batch; None if the trace has windows.
        packing_buffer: The most segments that a carry buffer may hold.
        steps: The steps that were replayed.
        rows: What each scope and rule did.
        column: Column of the trace that holds the lengths.
        simulated: What scope `global` would do on many ranks, if asked for.
    """

    trace: str
    packing_length: int
    micro_steps: int
    batch_size: int | None
    packing_buffer: int
    steps: Sequence[Step]
    rows: Sequence[Replayed]
    column: str = "length"
    simulated: SimulatedRanks | None = None

    @property
    def ranks(self) -> int:
        """Returns the number of ranks in the trace."""
        return len(self.steps[0].micro_batches)

    def row(self, scope: str, rule: str) -> Replayed:
        """Returns the result of a scope and rule."""
        return next(row for row in self.rows if (row.scope, row.rule) == (scope, rule))


def counted(number: int, noun: str) -> str:
    """Returns a number and its noun, in the plural unless the number is 1.

    >>> counted(1, "window"), counted(1200, "window")
    ('1 window', '1,200 windows')
    """
    return f"{number:,} {noun}" + "s" * (number != 1)


def headline(report: Report) -> str:
    """Returns what was replayed, in one line."""
    lens = [length for step in report.steps for own in step.encoded_lens for length in own]
    mean = sum(lens) / len(lens)
    of = "" if report.batch_size is None else f" of {report.batch_size} x {report.micro_steps}"
    ranks = "" if report.ranks == 1 else f" on {report.ranks} ranks"
    return (
        f"{counted(len(lens), 'segment')} of {min(lens):,} to {counted(max(lens), 'token')} (mean {mean:,.0f}); "
        f"{counted(len(report.steps), 'window')}{of}{ranks}; packing length {report.packing_length:,}"
    )


def table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Returns the names of the columns and, for each scope and rule, the cells. Numbers are means per window."""
    names = ["scope", "rule", "packs", "used", "bound", "fill", "in used", "longest", "infeasible", "wait", "ms"]
    several = report.ranks > 1
    return names + ["slowest", "moved"] * several, [_cells(row, several) for row in report.rows]


def words(report: Report) -> list[tuple[str, str]]:
    """Returns each column's name and its meaning."""
    explained = [
        ("scope, rule", "micro: a policy picks each pack from a carry buffer; window: one plan for all packs"),
        ("", "dense: fewest packs; balanced: shortest longest pack; cost: cheapest costliest pack"),
        ("packs", f"forwards of a window, idle ones included (gradient accumulation: {report.micro_steps})"),
        ("used", "packs that hold a segment; the others are idle and can be skipped"),
        ("bound", "the fewest packs that can hold these segments (proven)"),
        ("fill", "tokens over packing length, for all packs; it depends on the batch size alone"),
        ("in used", "fill of the used packs alone; here the packing shows"),
        ("longest", "the longest pack of a window over packing length: it sets the peak of memory"),
        ("infeasible", "windows that provably do not fit (+n?: undecided; full: the carry buffer is full)"),
        ("wait", "micro-steps that a segment waits in the carry buffer: mean (longest)"),
        ("ms", "time to plan a window, in milliseconds"),
    ]
    if report.ranks > 1:
        explained[0] = (explained[0][0], f"{explained[0][1]}; global: after moves between ranks")
        explained += [
            ("slowest", "cost of the slowest rank over the mean cost of the ranks, by a model of 2 billion parameters"),
            ("moved", "tokens that move to another rank"),
        ]
    return explained


def what_to_do(report: Report) -> list[str]:
    """Returns what follows from the numbers, the most urgent first."""
    micro = [row for row in report.rows if row.scope == "micro"]
    dense, balanced = report.row("window", "dense"), report.row("window", "balanced")
    steps = len(report.steps)
    column = "" if report.column == "length" else f" --column {shlex.quote(report.column)}"
    advice = f"packsched advise {report.trace}{column} --packing-length {report.packing_length}"
    said = []
    if failed := dense.infeasible + dense.undecided:
        fits = report.ranks > 1 and not report.row("global", "dense").refused
        so = "Scope global places them all." if fits else f"A smaller batch size fits: {advice}"
        said.append(
            f"Scope window cannot place {failed} of {counted(steps, 'window')}, and a run would stop at the first. {so}"
        )
    if full := [row for row in micro if row.stopped_at is not None]:
        first = min(full, key=lambda row: row.stopped_at or 0)
        said.append(
            f"Scope micro stops in window {(first.stopped_at or 0) + 1} of {steps} ({first.rule}): its carry buffer of "
            f"{counted(report.packing_buffer, 'segment')} is full, because micro-batches bring more tokens than a "
            f"pack takes. Use a smaller batch size: {advice}"
        )
    finished = [row for row in micro if row.stopped_at is None]
    if finished and not dense.refused:
        fewest = min(map(_used, finished))
        saved = 1 - _used(dense) / fewest
        if saved >= 0.02:
            said.append(
                f"Scope window (dense) runs {_used(dense):.1f} forwards per window instead of {fewest:.1f}: "
                f"{saved:.0%} fewer, with the same gradient. Set post_rollout_pack_scope: window and "
                "idle_micro_steps: skip."
            )
        else:
            said.append("Scope window saves no forwards here; it still carries no segment into a later window.")
    if late := max((row.late for row in finished), default=0):
        share = late / sum(len(own) for step in report.steps for own in step.encoded_lens)
        left = max(row.left_waiting for row in finished)
        said.append(
            f"Scope micro trains up to {share:.1%} of the segments in a later window than they were made for"
            + (f", and up to {counted(left, 'segment')} wait{'s' * (left == 1)} at the end." if left else ".")
        )
    if dense.fills and balanced.fills and _mean(balanced.longest_packs) < 0.95 * _mean(dense.longest_packs):
        said.append(
            f"Objective balanced lowers the longest pack from {_mean(dense.longest_packs):.0%} to "
            f"{_mean(balanced.longest_packs):.0%} of the packing length: less memory, but every pack is used."
        )
    if dense.fills and dense.fill.metrics()["fill"] < 0.8:
        said.append(f"The packs are {dense.fill.metrics()['fill']:.0%} full. A batch size that fills them: {advice}")
    return said


def simulated_lines(done: SimulatedRanks) -> list[tuple[str, str]]:
    """Returns what the simulation of many ranks found, as names and values."""
    steps, planned = len(done.misfits), len(done.stragglers)
    lines = [
        ("drawn", f"{counted(steps, 'window')} of {done.ranks} ranks with {counted(done.segments, 'segment')} each"),
        (
            "infeasible alone",
            f"{sum(map(bool, done.misfits))} of {counted(steps, 'window')} {'has' if steps == 1 else 'have'} a rank "
            "whose segments do not fit",
        ),
        ("rescued", f"{done.rescued} of these fit after moves between the ranks"),
        ("infeasible", f"{done.infeasible} do not fit on all ranks together ({done.undecided} undecided)"),
    ]
    if planned:
        lines += [
            ("slowest rank", f"{_mean(done.stragglers_before):.3f} times the mean cost without moves (the step waits)"),
            ("after the moves", f"{_mean(done.stragglers):.3f} times (highest {max(done.stragglers):.3f})"),
            ("moved", f"{_mean(done.moved):.1%} of the tokens (at least {_mean(done.least_moved):.1%} must move)"),
            ("planning", f"{1000 * _mean(done.seconds):.0f} ms for a window (longest {1000 * max(done.seconds):.0f})"),
        ]
    return lines


def _cells(row: Replayed, several: bool) -> list[str]:
    fill = row.fill.metrics()
    windows = max(row.fill.windows, 1)
    refused = "full" if row.stopped_at is not None else str(row.infeasible)
    cells = [
        row.scope,
        row.rule,
        f"{row.packs / windows:.1f}",
        f"{fill['non_empty_packs']:.1f}",
        f"{fill['lower_bound']:.1f}",
        f"{fill['fill']:.3f}",
        f"{fill['fill_non_empty']:.3f}",
        f"{_mean(row.longest_packs):.3f}",
        "-"
        if row.scope == "micro" and row.stopped_at is None
        else refused + f" +{row.undecided}?" * (row.undecided > 0),
        f"{row.waited / max(row.fill.segments, 1):.2f} ({row.longest_wait})" if row.scope == "micro" else "-",
        f"{1000 * _mean(row.seconds):.3g}",
    ]
    if several:
        moved = f"{row.moved_tokens / max(row.fill.tokens, 1):.1%}" if row.scope == "global" else "-"
        cells += [f"{_mean(row.stragglers):.3f}", moved]
    return cells if row.fills else [*cells[:2], *["-"] * 6, *cells[8:10], *["-"] * (len(cells) - 10)]


def _used(row: Replayed) -> float:
    return row.fill.metrics()["non_empty_packs"]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)
