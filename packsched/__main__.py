"""Runs the command: `python -m packsched replay TRACE`."""

from packsched.cli import app

app()
