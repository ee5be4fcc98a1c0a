"""Draws fault runs, runs them on two real ranks, and says what became of each."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from rollout_sft.checkpoint.manifest import last_finished_checkpoint
from tests.distributed.launch import start_two_ranks
from tests.faults import machine_faults as machine
from tests.faults.faults import EXCHANGE, HOW, KILL, KILL_SAVE, KINDS, MANY, ONLY_IN_SCOPES, RANK_0_ALONE, SAMPLE, Fault

ROOT = Path(__file__).parents[2]
WORKER = "tests.faults.worker"
STEPS, SAVE_STEPS = 6, 2
LIMIT = 60.0
"""Seconds from the fault until both processes must have ended."""
START_LIMIT = 240.0
"""Seconds from the start; imports alone take half a minute on a busy machine."""
TORCHRUN, PLAIN = "torchrun", "two processes"
ENDS_BY = {
    KILL: {-signal.SIGKILL},
    KILL_SAVE: {-signal.SIGKILL},
    machine.DAMAGE: {-signal.SIGKILL},
    machine.TERM: {-signal.SIGTERM},
    machine.INTERRUPT: {-signal.SIGINT, 1, 130},
}
"""The codes of a rank that does not get to raise."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One fault, in a scope, under a launcher."""

    number: int
    scope: str
    launcher: str
    fault: Fault


@dataclass(kw_only=True)
class Outcome:
    """How the processes of one launch ended."""

    codes: list[int]
    seconds: float | None
    hung: bool
    errors: list[dict | None]


def draw_runs(seed, number, scopes=("window", "micro")):
    """`number` runs, thirty of the trainer's faults before the machine's; all else is drawn without replacement."""
    rng = random.Random(seed)
    decks = {
        kind: {
            "how": _deck(rng, [how for how in {**HOW, **machine.HOW}[kind] if _scopes_of(how, scopes)]),
            "rank": _deck(rng, [0, 1]),
            "scope": _deck(rng, list(scopes)),
            "launcher": _deck(rng, [TORCHRUN, PLAIN]),
        }
        for kind in (*KINDS, *machine.KINDS)
    }
    kinds = [KINDS[i % len(KINDS)] if i < 30 else machine.KINDS[(i - 30) % len(machine.KINDS)] for i in range(number)]
    return [_draw(rng, i, kind, decks[kind], scopes) for i, kind in enumerate(kinds)]


def _scopes_of(how, scopes):
    return [scope for scope in scopes if scope in ONLY_IN_SCOPES.get(how, scopes)]


def _deck(rng, cards):
    while True:
        yield from rng.sample(cards, len(cards))


def _draw(rng, number, kind, deck, scopes):
    how = next(deck["how"])
    scope = _scopes_of(how, scopes)[0] if how in ONLY_IN_SCOPES else next(deck["scope"])
    rank = 0 if how in RANK_0_ALONE | machine.RANK_0_ALONE else next(deck["rank"])
    if kind == SAMPLE:
        step = rng.randrange(34)  # the index of the sample
    elif kind in (KILL_SAVE, machine.SAVE):
        step = rng.choice([2, 4, 6])
    elif kind == machine.DAMAGE:
        step = rng.choice([4, 6])
    elif kind in machine.KINDS:
        step = rng.randrange(1, STEPS)
    else:
        step = rng.randrange(1 if kind == KILL else 0, STEPS)
    share = round(rng.random(), 2) if kind == KILL and how != EXCHANGE else 0.0
    fault = Fault(kind=kind, rank=rank, step=step, how=how, share=share)
    launcher = TORCHRUN if kind == machine.AGENT else next(deck["launcher"])
    return Run(number=number + 1, scope=scope, launcher=launcher, fault=fault)


def launch(folder, scope, launcher, fault=None):
    """Two ranks in processes of their own; waits for their end, and ends them itself when they hang."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in (*folder.glob("error_rank*.txt"), *folder.glob("fault.json"), *folder.glob("pid_rank*")):
        leftover.unlink()
    settings = json.dumps({"scope": scope, "fault": fault and asdict(fault)})
    if launcher == TORCHRUN:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with (folder / "output.txt").open("w") as output:
            start = {"cwd": ROOT, "env": environment, "stdout": output, "stderr": output, "start_new_session": True}
            processes = [subprocess.Popen([*command, "-m", WORKER, str(folder), settings], **start)]
    else:
        processes = start_two_ranks(WORKER, folder, str(folder), settings)
    watched = list(processes)
    if fault and fault.kind == machine.AGENT:
        watched += [Orphan(folder / f"pid_rank{rank}") for rank in (0, 1)]
    hung = not _ended(watched, folder)
    ended = time.time()
    for process in watched:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait()
    planted = _read(folder / "fault.json")
    return Outcome(
        codes=[p.returncode for p in processes],
        seconds=ended - planted["time"] if planted else None,
        hung=hung,
        errors=[_read(folder / f"error_rank{r}.txt") for r in (0, 1)],
    )


class Orphan:
    """A rank that outlives its agent, known by the file that it wrote."""

    def __init__(self, path):
        self.path = path

    @property
    def pid(self):
        return int(self.path.read_text())

    def poll(self):
        if not self.path.exists():
            return None
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return 0
        return 0 if state == "Z" else None


def _ended(processes, folder):
    started = time.time()
    while any(p.poll() is None for p in processes):
        planted = _read(folder / "fault.json")
        if time.time() - started > START_LIMIT or (planted and time.time() - planted["time"] > LIMIT):
            return False
        time.sleep(0.05)
    return True


def _read(path):
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # not there, or about to be written
        return None


def hashes(folder, rank):
    """Step -> hash of the parameters after it; a step that was run twice must have come to the same."""
    path, found = folder / f"hashes_rank{rank}.txt", {}
    for line in path.read_text().splitlines() if path.exists() else []:
        step, digest = line.split()
        assert found.setdefault(int(step), digest) == digest, f"rank {rank} repeated step {step} differently"
    return found


def check_not_diverged(folder, reference):
    """Both ranks, as far as they went, have the parameters of the uninterrupted run."""
    expected = hashes(reference, 0)
    assert len(expected) == STEPS
    for rank in (0, 1):
        for step, digest in hashes(folder, rank).items():
            assert digest == expected[step], f"rank {rank} diverged in step {step}"


def check_ended(run, outcome):
    """In time, and as the kind of fault allows: both ranks raise, or one died and the other raised or was ended."""
    fault = run.fault
    assert not outcome.hung, f"hung: {outcome}"
    assert outcome.seconds is not None, f"the fault never happened: {outcome}"
    if fault.kind == machine.STOP:
        assert not any(outcome.codes), outcome
        assert outcome.seconds > machine.PAUSE
        return
    assert all(code != 0 for code in outcome.codes), outcome
    if fault.kind == machine.AGENT:
        return
    if fault.kind in ENDS_BY:
        assert outcome.errors[fault.rank] is None
        if run.launcher == PLAIN:
            assert outcome.codes[fault.rank] in ENDS_BY[fault.kind], outcome
            assert outcome.errors[1 - fault.rank] is not None, "the survivor raised"
            if fault.kind == machine.INTERRUPT and fault.rank == 1:
                assert "KeyboardInterrupt" in outcome.errors[1 - fault.rank]["message"]
        return
    if fault.kind == machine.NAN:
        assert [e and e["type"] for e in outcome.errors] == ["NonFiniteError"] * 2, outcome.errors
        assert outcome.errors[0]["message"] == outcome.errors[1]["message"]
        if fault.how != "a gradient is infinite":
            assert f"rank {fault.rank}, micro-step 1: loss nan, samples '" in outcome.errors[0]["message"]
        return
    if fault.kind == machine.DISK and fault.how == "no byte more" and fault.rank == 0 and run.launcher == PLAIN:
        # It fails outside of an agreement, and the store that would keep its message ends with it.
        assert outcome.errors[0]["type"] == "OSError"
        assert outcome.errors[1] is not None, "the survivor raised"
        return
    if fault.how == MANY and run.scope == "global":
        # The plan is refused by every rank, from the same numbers.
        assert [e and e["type"] for e in outcome.errors] == ["InfeasibleWindowError"] * 2, outcome.errors
        assert outcome.errors[0]["message"] == outcome.errors[1]["message"]
        return
    own = [e for e in outcome.errors if e and e["type"] != "PeerError"]
    peer = [e for e in outcome.errors if e and e["type"] == "PeerError"]
    assert (len(own), len(peer)) == (1, 1), outcome.errors
    assert own[0]["message"] in peer[0]["message"], "the message of the failing rank arrives"


def check_checkpoint(run, folder):
    """The last checkpoint whose save was finished is still there."""
    fault = run.fault
    found = last_finished_checkpoint(folder)
    found = int(found.rpartition("-")[2]) if found else 0
    went = max([0, *hashes(folder, 0), *hashes(folder, 1)])  # the steps that some rank finished
    if fault.kind == machine.SAVE:
        assert found == fault.step - SAVE_STEPS, (found, fault)
    elif fault.kind == machine.DAMAGE:
        assert found == fault.step, (found, fault)
    elif fault.kind == KILL_SAVE:
        marked = fault.how in ("after the mark", "while the old checkpoint is removed")
        assert found == (fault.step if marked else fault.step - SAVE_STEPS), (found, fault)
    elif fault.kind in (KILL, machine.DISK, machine.AGENT):
        # A kill close to the end of a window may hit the save behind it.
        assert found in (went // SAVE_STEPS * SAVE_STEPS, (went - 1) // SAVE_STEPS * SAVE_STEPS), (found, went)
    else:
        assert found == went // SAVE_STEPS * SAVE_STEPS, (found, went)
    return found


def check_damage_is_refused(run, folder):
    """Neither rank reads anything from it; both name the file, and the checkpoint to go on from."""
    outcome = launch(folder, run.scope, PLAIN)
    assert not outcome.hung
    assert all(code != 0 for code in outcome.codes), outcome
    for error in outcome.errors:
        assert f"checkpoint-{run.fault.step} is damaged: {run.fault.how.split()[0]}" in error["message"]
        assert f"/checkpoint-{run.fault.step - SAVE_STEPS}." in error["message"]


def check_same_end(folder, reference):
    """Weights, optimizer, log, rollouts and waiting segments of both ranks, bit for bit."""
    for rank in (0, 1):
        one, other = (torch.load(f / f"end_rank{rank}.pt", weights_only=True) for f in (folder, reference))
        for name, tensor in one["model"].items():
            assert torch.equal(tensor, other["model"][name]), name
        assert one["optimizer"].keys() == other["optimizer"].keys()
        for number, state in one["optimizer"].items():
            for name, value in state.items():
                assert torch.equal(value, other["optimizer"][number][name]), (number, name)
        assert _without_times(one["log"]) == _without_times(other["log"])
        assert len(one["left"]) == len(other["left"])
        assert all(torch.equal(a, b) for a, b in zip(one["left"], other["left"], strict=True))
        assert _answers(folder, rank) == _answers(reference, rank)


def _without_times(log):
    clocks = ("time/", "total_flos", "balance/predicted_over_measured", "balance/fitted_")
    return [{k: v for k, v in entry.items() if not k.startswith(clocks)} for entry in log if "loss" in entry]


def _answers(folder, rank):
    answers = {}
    for line in (folder / f"answers_rank{rank}.jsonl").read_text().splitlines():
        step, rollouts = json.loads(line)
        assert answers.setdefault(step, rollouts) == rollouts, f"step {step} was answered differently after the resume"
    assert len(answers) == STEPS
    return answers


def carry_out(run, folder, reference):
    """The fault, what it left, and the resumed run; returns a row of the table or raises what was violated."""
    outcome = launch(folder, run.scope, run.launcher, run.fault)
    check_ended(run, outcome)
    check_not_diverged(folder, reference)
    checkpoint = check_checkpoint(run, folder)
    if run.fault.kind == machine.DAMAGE:
        check_damage_is_refused(run, folder)
        checkpoint -= SAVE_STEPS
    machine.make_room(run.fault, folder)
    if run.fault.kind == machine.STOP:
        check_same_end(folder, reference)
        return {"run": run, "outcome": outcome, "checkpoint": checkpoint}
    resumed = launch(folder, run.scope, PLAIN)
    assert not resumed.hung, resumed
    assert not any(resumed.codes), (folder / "output.txt").read_text()[-3000:]
    check_not_diverged(folder, reference)
    check_same_end(folder, reference)
    return {"run": run, "outcome": outcome, "checkpoint": checkpoint}
