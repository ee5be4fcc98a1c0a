"""Plans are decisions that users train on: the golden file holds them, and every process makes the same ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packsched.golden import make_plans

GOLDEN = Path(__file__).with_name("golden") / "plans.json"
ROOT = Path(__file__).resolve().parents[2]


def test_plans_are_those_of_the_golden_file():
    now, golden = json.loads(make_plans.text()), json.loads(GOLDEN.read_text())
    assert len(now) == len(golden)
    for decided, expected in zip(now, golden, strict=True):
        assert decided == expected


def test_the_golden_file_is_not_vacuous():
    golden = json.loads(GOLDEN.read_text())
    refused = [case for case in golden if isinstance(case.get("dense"), str)]
    differ = [case for case in golden if case.get("dense") != case.get("balanced")]
    assert 5 < len(refused) < len(golden) / 2
    assert len(differ) > len(golden) / 2


@pytest.mark.parametrize("hash_seed", ["0", "4321"])
def test_a_fresh_process_makes_the_same_plans(hash_seed):
    found = subprocess.run(
        [sys.executable, "-m", "tests.packsched.golden.make_plans", "--print"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == GOLDEN.read_text()
