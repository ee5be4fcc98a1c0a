"""Prints the versions that the tests were run with: `python -m packsched.constraints > constraints.txt`.

For `pip install -c constraints.txt 'packsched[train]'` without a clone of the repository.
"""

from __future__ import annotations

from importlib.resources import files


def constraints() -> str:
    """Returns the pinned versions, one a line, in the form of a pip constraints file."""
    return files("packsched").joinpath("constraints.txt").read_text(encoding="utf-8")


if __name__ == "__main__":
    print(constraints(), end="")
