"""Faults on two ranks: none hangs, none goes on alone, none loses a checkpoint, and a resume is bit-equal.

Three representatives run with every `make test`; `make test-faults` draws sixty and writes docs/faults.md.
`FAULTS_SCOPES=global make test-faults` draws them for scope `global` and writes docs/faults_global.md.
"""

import os

import pytest

from tests.faults import machine_faults
from tests.faults.faults import EXCHANGE, KILL, KILL_SAVE, KINDS, Fault
from tests.faults.runs import PLAIN, ROOT, TORCHRUN, Run, carry_out, draw_runs, launch
from tests.faults.table import GLOBAL_INTRODUCTION, write_table

pytestmark = pytest.mark.distributed
SEED = int(os.environ.get("FAULTS_SEED", "0"))
NUMBER = int(os.environ.get("FAULTS_RUNS", "60"))
SCOPES = tuple(os.environ.get("FAULTS_SCOPES", "window,micro").split(","))
REFERENCE_LAUNCHER = {"micro": TORCHRUN, "window": PLAIN, "global": PLAIN}
"""For micro and window the launcher that the scope's representative does not use, so that the hashes of the runs that
are compared have different seeds; for global the faster one."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Scope -> the folder of a run without a fault, made when it is first needed."""
    folders = {}

    def folder_of(scope):
        if scope not in folders:
            folder = tmp_path_factory.mktemp(scope)
            outcome = launch(folder, scope, REFERENCE_LAUNCHER[scope])
            assert not any(outcome.codes), (folder / "output.txt").read_text()[-3000:]
            folders[scope] = folder
        return folders[scope]

    return folder_of


@pytest.mark.parametrize(
    "run",
    [
        Run(
            number=1,
            scope="micro",
            launcher=PLAIN,
            fault=Fault(kind=KILL, rank=1, step=3, how="at a random moment", share=0.5),
        ),
        Run(
            number=2,
            scope="window",
            launcher=TORCHRUN,
            fault=Fault(kind=KILL_SAVE, rank=0, step=4, how="in the optimizer"),
        ),
        Run(number=3, scope="global", launcher=PLAIN, fault=Fault(kind=KILL, rank=0, step=3, how=EXCHANGE)),
    ],
    ids=["micro, kill -9 in a window", "window, kill -9 in a save", "global, kill -9 in the exchange"],
)
def test_a_killed_rank_takes_the_other_along_and_both_resume_bit_for_bit(run, tmp_path, uninterrupted):
    row = carry_out(run, tmp_path, uninterrupted(run.scope))
    assert row["checkpoint"] >= 2, "nothing was resumed: the test would show nothing"


def test_the_draw_is_the_same_every_time_and_has_every_kind():
    runs = draw_runs(0, 30)
    assert runs == draw_runs(0, 30) != draw_runs(1, 30)
    assert [sum(run.fault.kind == kind for run in runs) for kind in KINDS] == [6] * 5
    more = draw_runs(0, 60)
    assert more[:30] == runs
    assert {run.fault.kind for run in more[30:]} == set(machine_faults.KINDS)
    assert {run.launcher for run in runs} == {TORCHRUN, PLAIN}
    assert {run.scope for run in runs} == {"micro", "window"}
    assert {run.fault.rank for run in runs} == {0, 1}
    in_global = draw_runs(0, 30, ("global",))
    assert {run.scope for run in in_global} == {"global"}
    assert EXCHANGE in {run.fault.how for run in in_global} - {run.fault.how for run in more}


@pytest.mark.faults
@pytest.mark.slow
def test_random_faults(tmp_path_factory, uninterrupted):
    rows, failures = [], []
    for run in draw_runs(SEED, NUMBER, SCOPES):
        folder = tmp_path_factory.mktemp(f"run{run.number}")
        try:
            rows.append(carry_out(run, folder, uninterrupted(run.scope)))
            print(f"run {run.number}: passed, ended after {rows[-1]['outcome'].seconds:.1f} s: {run.fault}", flush=True)
        except AssertionError as violated:
            failures.append((run, str(violated).splitlines()[0]))
            print(f"run {run.number}: FAILED, see {folder}: {run}\n{violated}", flush=True)
    if SCOPES == ("global",):
        write_table(ROOT / "docs" / "faults_global.md", SEED, rows, failures, GLOBAL_INTRODUCTION)
    elif "global" not in SCOPES:
        write_table(ROOT / "docs" / "faults.md", SEED, rows, failures)
    assert not failures
