"""Importing packsched, or doing all it does with numpy, must not bring a framework along."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ["torch", "transformers", "accelerate", "scipy", "vllm", "binpacking", "rollout_sft"]
HEAVY += ["typer", "rich", "matplotlib", "pyarrow", "datasets"]


def loaded_by(code, planted=ROOT):
    """Runs `code` in a fresh interpreter, in folder `planted`, and returns which of HEAVY it loaded."""
    report = f"import sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        cwd=planted,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_importing_packsched_loads_no_framework_and_no_binpacking():
    assert loaded_by("import packsched") == []


def test_the_test_above_can_fail(tmp_path):
    for name in HEAVY:
        (tmp_path / f"{name}.py").touch()
    (tmp_path / "planted.py").write_text(f"import packsched, {', '.join(HEAVY)}")
    assert loaded_by("import planted", tmp_path) == HEAVY


def test_binpacking_is_loaded_only_when_its_policy_runs():
    assert loaded_by("import packsched; packsched.select([1, 2], 4, policy='fifo')") == []
    assert loaded_by("import packsched; packsched.select([1, 2], 4)") == ["binpacking"]
