"""The tested versions reach people who have the wheel and no clone."""

import subprocess
import sys
from pathlib import Path

from packsched.constraints import constraints

ROOT = Path(__file__).resolve().parents[2]


def test_the_package_holds_the_constraints_of_the_repository():
    assert constraints() == (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "torch==" in constraints()


def test_the_command_prints_a_constraints_file():
    command = [sys.executable, "-m", "packsched.constraints"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == constraints()
