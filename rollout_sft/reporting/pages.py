"""Prints the pages of a command: facts before a run, and where its files lie after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rollout_sft.config.shorten import printable

Facts = Mapping[str, str]
"""Maps what a line is about to what it says."""
FILES = {
    "log.jsonl": "every number of every step",
    "summary.json": "the numbers of the table",
    "curves.png": "loss, score, fill and seconds",
    "packs.png": "how the last window was packed",
    "tensorboard": "for tensorboard --logdir",
}


def print_page(title: str, facts: Facts, *, console: Console | None = None) -> None:
    """
    Prints facts in two columns.

    Args:
        title (`str`):
            The title above them.
        facts (`Mapping[str, str]`):
            The lines.
        console (`Console`, *optional*):
            Where to print; the standard output when not given.
    """
    table = Table(
        title=escape(printable(title)), title_justify="left", box=box.SIMPLE, show_header=False, pad_edge=False
    )
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in facts.items():
        table.add_row(name, escape(printable(text)))
    (console or make_console()).print(table)


def print_files(folders: Sequence[Path], *, console: Console | None = None) -> None:
    """Prints the folders of a run and what lies in them."""
    held = {path.name for folder in folders for path in folder.glob("*")}
    facts = {"written to": "\n".join(f"{folder}/" for folder in folders), "the model": "weights, config and tokenizer"}
    facts |= {name: what for name, what in FILES.items() if name in held}
    facts |= {name: "drawn by a callback" for name in sorted(held) if name.endswith(".png") and name not in FILES}
    print_page("Files", facts, console=console)


def make_console() -> Console:
    """Makes a console for the standard output; outside of a terminal it is 120 columns wide."""
    console = Console()
    return console if console.is_terminal else Console(width=console.width if console.width != 80 else 120)
