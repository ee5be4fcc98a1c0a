"""The same lengths give the same decision: across versions of this project, processes and hash seeds.

`golden/selection.json` holds buffer states and what a literal transcription of the requirement's pseudocode
selected from them with binpacking 2.0.1; for `optimal`, what a full table of sums selected. A change of it changes
what users train on together.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from packsched import select

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("golden") / "selection.json"
CASES = json.loads(GOLDEN.read_text())
POLICIES = ["fifo", "binpacking", "optimal"]


def decisions(policy):
    return [select(case["encoded_lens"], case["packing_length"], policy=policy) for case in CASES]


@pytest.mark.parametrize("policy", POLICIES)
def test_decisions_are_those_of_the_golden_file(policy):
    assert decisions(policy) == [case[policy] for case in CASES]


def test_the_golden_file_is_not_vacuous():
    assert sum(case["fifo"] != case["binpacking"] for case in CASES) > len(CASES) / 4
    assert sum(case["optimal"] not in (case["fifo"], case["binpacking"]) for case in CASES) > len(CASES) / 4


def test_the_golden_file_notices_a_best_fit_heuristic(monkeypatch):
    """What binpacking 1.5.2 did: the fullest bin that still has room, instead of the emptiest."""
    import binpacking

    def best_fit_decreasing(items, cap, weight_pos):
        bins = []
        for item in sorted(items, key=lambda item: -item[weight_pos]):
            loads = [sum(other[weight_pos] for other in found) for found in bins]
            room = [k for k, load in enumerate(loads) if load + item[weight_pos] <= cap]
            if room:
                bins[max(room, key=loads.__getitem__)].append(item)
            else:
                bins.append([item])
        return bins

    monkeypatch.setattr(binpacking, "to_constant_volume", best_fit_decreasing)
    assert decisions("binpacking") != [case["binpacking"] for case in CASES]


FINGERPRINT = f"""
import hashlib, json, sys
from packsched import plan_window, select
cases = [(c["encoded_lens"], c["packing_length"]) for c in json.load(open(sys.argv[1]))]
found = [[select(lens, cap, policy=p) for lens, cap in cases] for p in {POLICIES!r}]
found += [[plan_window(lens, cap, len(lens), objective=o).packs for lens, cap in cases] for o in ("dense", "balanced")]
print(hashlib.sha256(json.dumps(found).encode()).hexdigest())
"""


def test_another_process_with_another_hash_seed_decides_the_same():
    prints = {
        subprocess.run(
            [sys.executable, "-c", FINGERPRINT, str(GOLDEN)],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "4242", "random")
    }
    assert len(prints) == 1
    assert len(prints.pop().strip()) == 64
