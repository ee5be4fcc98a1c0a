"""Draws a replay: the packs' fill over the windows, one window's packs, and the lengths. As a picture or as a page."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from packsched.errors import InfeasibleWindowError, UndecidedWindowError
from packsched.files import printable, write_file
from packsched.report import Report, headline, simulated_lines, table, what_to_do, words
from packsched.window import plan_window

POINTS = 200
"""The most points of a line; more windows are averaged in groups."""
LINES = (
    ("micro", "binpacking", "#999999"),
    ("window", "dense", "#0072b2"),
    ("window", "balanced", "#e69f00"),
    ("global", "dense", "#009e73"),
)
"""The scopes and rules that are drawn, and their colours, which people with colour blindness can tell apart."""
PACK_EDGES = 64
"""Above this many packs the bars are drawn without the white lines between them and without gaps."""


def draw(report: Report, target: Path) -> None:
    """Writes the picture (`.png`, or another format that matplotlib knows) or the page (`.html`).

    Args:
        report: What was replayed.
        target: The file; its suffix says which.

    Raises:
        FileError: The file cannot be written.
    """
    # Text stays text in a page, and the same replay gives the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "packsched", "font.size": 9}):
        if target.suffix == ".html":
            write_file(target, _page(report).encode())
            return
        figure = Figure(figsize=(11, 10.5), layout="constrained")
        figure.suptitle(headline(report), fontsize=10)
        parts: Any = figure.subfigures(3, 1, height_ratios=(1.05, 1.15, 0.9))
        for part, draw_part in zip(parts, (_draw_fill, _draw_packs, _draw_lengths), strict=True):
            draw_part(part, report)
        drawn = io.BytesIO()
        figure.savefig(drawn, format=target.suffix[1:], dpi=110)
        write_file(target, drawn.getvalue())


def _draw_fill(figure: Any, report: Report) -> None:
    axes = figure.subplots()
    group = -(-len(report.steps) // POINTS)
    for scope, rule, colour in LINES:
        for row in report.rows:
            if (row.scope, row.rule) == (scope, rule) and row.fills:
                starts = np.arange(0, len(row.fills), group)
                means = np.add.reduceat(row.fills, starts) / np.diff(np.append(starts, len(row.fills)))
                windows = np.array(row.planned, dtype=float)[starts]
                # Windows that could not be planned have no fill: the line is broken there.
                breaks = np.flatnonzero(np.diff(windows) >= 2 * group) + 1
                windows, means = (np.insert(values, breaks, np.nan) for values in (windows, means))
                marker = "o" if len(means) <= 30 or len(breaks) else None
                label = f"{scope}, {rule}"
                # Where all packs are used, micro and balanced have the same fill: dashes on top show both.
                style: Any = {"linestyle": "--", "zorder": 3} if scope == "micro" else {}
                style |= {"color": colour, "label": label, "marker": marker, "markersize": 3}
                axes.plot(windows, means, **style)
    averaged = "" if group == 1 else f" (each point averages {group} windows)"
    axes.set(title=f"Fill of the used packs{averaged}", xlabel="window", ylabel="tokens / packing length")
    axes.set_ylim(0, 1.02)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    if axes.lines:
        figure.legend(loc="outside lower center", ncols=len(LINES), frameon=False)


def _draw_packs(figure: Any, report: Report) -> None:
    chosen, number, plans = _typical_window(report)
    panels = figure.subplots(1, 3, sharey=True)
    batches = [list(batch) for batch in report.steps[number].micro_batches[0]]
    packed = [[[chosen[at] for at in pack] for pack in plan] for plan in plans]
    titles = ("micro-batches as they came", "scope window, dense", "scope window, balanced")
    longest = max(chosen)
    for axes, title, bars in zip(panels, titles, [batches, *packed], strict=False):
        _stack(axes, bars, longest)
        axes.axhline(report.packing_length, color="#d55e00", linewidth=1, linestyle="--")
        used = sum(map(bool, bars))
        axes.set(title=f"{title}\n{used} of {len(bars)} used", xlabel="micro-step")
    for axes in panels[1 + len(packed) :]:
        axes.text(0.5, 0.5, "no window can be planned", ha="center", transform=axes.transAxes)
    panels[0].set_ylabel("tokens (dashed: packing length)")
    figure.suptitle(f"The segments of window {number}: each block is one", fontsize=10)


def _stack(axes: Any, bars: Sequence[Sequence[int]], longest: int) -> None:
    colours = matplotlib.colormaps["viridis_r"]
    few = len(bars) <= PACK_EDGES
    places, heights, bottoms = [], [], []
    for place, bar in enumerate(bars):
        ordered = sorted(bar, reverse=True)
        places += [place] * len(bar)
        heights += ordered
        bottoms += [sum(ordered[:at]) for at in range(len(ordered))]
    axes.bar(
        places,
        heights,
        bottom=bottoms,
        width=0.85 if few else 1.0,
        color=[colours(0.08 + 0.92 * height / longest) for height in heights],
        edgecolor="white" if few else "none",
        linewidth=0.4,
    )
    axes.set_xlim(-0.6, len(bars) - 0.4)


def _draw_lengths(figure: Any, report: Report) -> None:
    axes = figure.subplots()
    lens = np.array([length for step in report.steps for own in step.encoded_lens for length in own])
    axes.hist(lens, bins=np.linspace(0, lens.max() + 1, 61), color="#0072b2")
    median, tail = np.quantile(lens, (0.5, 0.9))
    # Each label lies on its own side of its line: the lines may be close to each other.
    for value, name, side, shift in ((median, "median", "right", -2), (tail, "90 %", "left", 2)):
        axes.axvline(value, color="black", linewidth=0.8, linestyle=":")
        axes.annotate(
            f"{name} {value:,.0f}",
            (value, 1),
            xytext=(shift, 1),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha=side,
            va="bottom",
            fontsize=8,
        )
    axes.set(xlabel="tokens of a segment", ylabel="segments")
    axes.set_title(f"Lengths (packing length {report.packing_length:,})", pad=16)
    axes.grid(alpha=0.3)


def _typical_window(report: Report) -> tuple[list[int], int, list[Sequence[Sequence[int]]]]:
    """Returns the lengths of the first rank in the window of median tokens, its number, and its plans if it has any."""
    windows = [step.encoded_lens[0] for step in report.steps]
    by_tokens = sorted((number for number, own in enumerate(windows) if own), key=lambda number: sum(windows[number]))
    middle = len(by_tokens) // 2
    for number in [*by_tokens[middle:], *reversed(by_tokens[:middle])]:
        steps = report.steps[number].micro_steps
        try:
            plans = [
                plan_window(windows[number], report.packing_length, steps),
                plan_window(windows[number], report.packing_length, steps, objective="balanced"),
            ]
        except (InfeasibleWindowError, UndecidedWindowError):
            continue
        return windows[number], number, [plan.packs for plan in plans]
    return windows[by_tokens[middle]], by_tokens[middle], []


def _page(report: Report) -> str:
    names, rows = table(report)
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    meanings = "".join(f"<dt>{name}</dt><dd>{meaning}</dd>\n" for name, meaning in words(report))
    to_do = "".join(f"<li>{html.escape(line)}</li>\n" for line in what_to_do(report))
    simulated = ""
    if report.simulated is not None:
        lines = "".join(f"<dt>{name}</dt><dd>{value}</dd>\n" for name, value in simulated_lines(report.simulated))
        simulated = f"<h2>Scope global on {report.simulated.ranks} ranks, simulated</h2>\n<dl>{lines}</dl>\n"
    figures = "".join(
        f"<figure>{_svg(part, report, height)}</figure>\n"
        for part, height in ((_draw_fill, 3.7), (_draw_packs, 4.0), (_draw_lengths, 3.0))
    )
    trace = html.escape(printable(report.trace))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>packsched replay: {trace}</title>\n<style>{_STYLE}</style></head><body>\n"
        f"<h1>{trace}</h1>\n<p>{html.escape(headline(report))}</p>\n"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'
        f"<h2>What to do</h2>\n<ul>{to_do}</ul>\n{simulated}{figures}"
        f"<h2>The words of the table</h2>\n<dl>{meanings}</dl>\n</body></html>\n"
    )


def _svg(part: Any, report: Report, height: float) -> str:
    figure = Figure(figsize=(10, height), layout="constrained")
    part(figure, report)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; white-space: nowrap; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; text-align: right; border-bottom: 1px solid #ddd; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
figure { margin: 1.5rem 0; overflow-x: auto; } svg { width: 100%; min-width: 44rem; height: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; }
@media (max-width: 40rem) { dl { display: block; } dd { margin: 0 0 .5rem; } }
"""
