"""
Changes one token of the sources at a time and runs the nearest tests: do they notice?

    python -m tests.mutants            the whole sample; writes docs/mutants.md
    python -m tests.mutants --list     what would be changed

Ends with an error when a change survives that `reasons.py` does not explain: write a test that notices it, or the
reason why nobody needs one. Results are kept in runs/mutants.jsonl, so a run that was stopped goes on where it was:
a change that was noticed is not tested again while its file stays the same, one that survived while the tests do too.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.mutations import Mutation, draw
from tests.mutants.reasons import REASONS

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "docs" / "mutants.md"
KEPT = ROOT / "runs" / "mutants.jsonl"
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """So many changes in the sources under some folders, and the folders of the tests that should notice them."""

    name: str
    sources: tuple[str, ...]
    size: int
    tests: tuple[str, ...]


SAMPLES = (
    Sample(name="packsched", sources=("packsched",), size=48, tests=("tests/packsched",)),
    Sample(
        name="rollout_sft, step and checks",
        sources=("rollout_sft/step", "rollout_sft/checks"),
        size=20,
        tests=("tests/rollout_sft/step", "tests/rollout_sft/checks"),
    ),
)


def files(folders, pattern):
    return sorted(str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob(pattern))


class Copies:
    """Copies of the working tree that mutants are written into; the tree itself is never changed."""

    def __init__(self, number, folder):
        self._free = SimpleQueue()
        tracked = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
        for at in range(number):
            copy = Path(folder) / str(at)
            for path in filter(os.path.isfile, tracked.splitlines()):
                (copy / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy / path)
            self._free.put(copy)

    def run(self, tests, limit, mutation=None):
        """How the tests ended in a copy, with or without a mutation: killed, survived or timeout; and the seconds."""
        copy = self._free.get()
        original = mutation and (copy / mutation.path).read_text()
        try:
            if mutation:
                (copy / mutation.path).write_text(mutation.source)
            pytest = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:cov", "--hypothesis-seed=0"]
            environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
            started = time.monotonic()
            try:
                done = subprocess.run(
                    [sys.executable, *pytest, *tests], cwd=copy, env=environment, capture_output=True, timeout=limit
                )
                outcome = "survived" if done.returncode == 0 else "killed"
            except subprocess.TimeoutExpired:
                outcome = "timeout"
            return outcome, time.monotonic() - started
        finally:
            if mutation:
                (copy / mutation.path).write_text(original)
            self._free.put(copy)


def nearest_first(tests, path):
    """Test files in the order in which they are likely to notice a change of `path`."""
    stem = Path(path).stem
    return sorted(tests, key=lambda test: (stem not in test, Path(path).parent.name not in test, test))


class Results:
    """Outcomes of earlier runs, and of this one."""

    def __init__(self, tests):
        self._tests = sha256(b"".join((ROOT / path).read_bytes() for path in tests)).hexdigest()
        kept = KEPT.read_text().splitlines() if KEPT.exists() else []
        self._kept = {(line["source"], line["tests"]): line["outcome"] for line in map(json.loads, kept)}

    def find(self, mutation):
        """The outcome that a new run of the tests would repeat, or None."""
        source = sha256(mutation.source.encode()).hexdigest()
        noticed = {outcome for (of, _), outcome in self._kept.items() if of == source} - {"survived"}
        return noticed.pop() if noticed else self._kept.get((source, self._tests))

    def keep(self, mutation, outcome):
        source = sha256(mutation.source.encode()).hexdigest()
        KEPT.parent.mkdir(exist_ok=True)
        with KEPT.open("a") as file:
            file.write(json.dumps({"source": source, "tests": self._tests, "outcome": outcome}) + "\n")


def examine(sample, copies, jobs):
    """(mutation, outcome) of every mutation of a sample."""
    mutations = draw(ROOT, files(sample.sources, "*.py"), sample.size, SEED)
    tests = files(sample.tests, "test_*.py")
    results = Results(tests)
    outcomes = [results.find(mutation) for mutation in mutations]
    if None not in outcomes:
        return list(zip(mutations, outcomes, strict=True))
    outcome, seconds = copies.run(tests, limit=3600)
    assert outcome == "survived", f"the tests of {sample.name} fail without any change"

    def judge(mutation, kept):
        if kept is not None:
            return mutation, kept
        outcome, took = copies.run(nearest_first(tests, mutation.path), 60 + 5 * seconds, mutation)
        results.keep(mutation, outcome)
        print(f"{outcome:9} {took:4.0f} s  {mutation.path}:{mutation.number}  {mutation.before}  ->  {mutation.after}")
        sys.stdout.flush()
        return mutation, outcome

    with ThreadPoolExecutor(jobs) as threads:
        return list(threads.map(judge, mutations, outcomes))


def report(results: dict[str, list[tuple[Mutation, str]]]) -> str:
    lines = [
        "# Do the tests notice a wrong token?",
        "",
        "`make mutants` changes one token at a time (a fixed sample, made by cosmic-ray) and runs the tests",
        "of the same package. A change that no test notices needs a test, or a reason below.",
        "",
        "| sample | changes | noticed | survived, for a reason | survived |",
        "|---|---|---|---|---|",
    ]
    for name, outcomes in results.items():
        survivors = [mutation for mutation, outcome in outcomes if outcome == "survived"]
        explained = sum(mutation.key in REASONS for mutation in survivors)
        noticed = len(outcomes) - len(survivors)
        lines.append(f"| {name} | {len(outcomes)} | {noticed} | {explained} | {len(survivors) - explained} |")
    lines += ["", "A change with which the tests never end counts as noticed.", ""]
    lines += ["| file | change | why it may survive |", "|---|---|---|"]
    for outcomes in results.values():
        for mutation, outcome in outcomes:
            if outcome == "survived":
                change = f"`{mutation.before}` to `{mutation.after}`".replace("|", "\\|")
                lines.append(f"| {mutation.path} | {change} | {REASONS.get(mutation.key, '**not explained**')} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--list", action="store_true", help="print the sample and run nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants that are tested at the same time")
    parser.add_argument("--only", default="", help="a part of the sample's name")
    arguments = parser.parse_args()
    samples = [sample for sample in SAMPLES if arguments.only in sample.name]
    if arguments.list:
        for sample in samples:
            for m in draw(ROOT, files(sample.sources, "*.py"), sample.size, SEED):
                print(f"{m.path}:{m.number}  {m.before}  ->  {m.after}")
        return 0
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        copies = Copies(arguments.jobs, folder)
        results = {sample.name: examine(sample, copies, arguments.jobs) for sample in samples}
    text = report(results)
    print(text)
    if len(samples) == len(SAMPLES):
        REPORT.write_text(text)
    return int("**not explained**" in text)


if __name__ == "__main__":
    sys.exit(main())
