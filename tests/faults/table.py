"""`docs/faults.md`: what became of every fault run."""

from tests.faults import machine_faults as machine
from tests.faults.faults import EXCHANGE, KILL, KILL_SAVE, SAMPLE
from tests.faults.runs import ENDS_BY, PLAIN

INTRODUCTION = """\
# What happens when a rank fails

Made by `make test-faults`: {number} runs drawn with seed {seed}, each on two real ranks (gloo, CPU) of the real
trainer: six steps, a checkpoint every two, only the last one kept (`save_total_limit: 1`), dropout on, so that a
generator that is not restored shows. After every optimizer step both ranks hash their parameters. A run passes when

- both processes have ended within 60 s of the fault (`ended after`: seconds, on a busy machine);
- every hash of both ranks is that of the uninterrupted run, as far as they went: no rank went on alone;
- a rank that raised has its own error, the other a `PeerError` with the same message; a step that is not finite is the
  same error on both, and names the rank, the micro-step and the samples;
- the last checkpoint whose save was finished is still there (`checkpoint`: its step; 0: the fault came before one);
- the run resumed from it ends with weights, optimizer state, rollouts, log and waiting segments of both ranks equal
  to the uninterrupted run's, bit for bit.

The first half are faults of the trainer, the second those of the machine and of the numbers: a file of a checkpoint
that cannot be written (a folder has its name), a loss or a gradient that is not finite, a checkpoint that is damaged
after it was finished (both ranks refuse it by the file's name; the run goes on from the one before), SIGTERM and SIGINT
to one rank, SIGSTOP for 20 s (nothing needs to be resumed), a disk that is full for one rank (`RLIMIT_FSIZE`), and
SIGKILL to torchrun's agent (its ranks train on without it). A rank that fails where no agreement follows (an interrupt,
a full disk under the log) leaves its message in the rendezvous store; without a launcher rank 0 keeps that store, and
when it is rank 0 that fails, the other raises with what its collective says.

A SIGKILL at a random moment comes after a share of the time that the window before took; the first window also holds
the start of the model, so that a kill timed by it may hit a later step.

{verdict}

`torchrun`: the agent notices that a rank died and ends the others (SIGTERM), so a survivor of a SIGKILL may not get
to raise. `two processes`: no agent (`env://` rendezvous); the survivor raises by itself, because gloo notices the
closed connection in the collective it waits in. No timeout takes part: on a CPU `ddp_timeout` does not even reach the
process group (transformers passes it on for GPUs only). With NCCL a rank that waits for a dead one learns of it from
the watchdog or, as a rule sooner, from the launcher, so start with `torchrun` or `accelerate launch`. NCCL was not
tested here.

What the checks cost a save and a step beside the plain Trainer (`python -m benchmarks.save_cost`: pairs in an
order drawn anew, the median of their differences; CPU, one thread; the goals are 1 % of a step and 5 % of a save):

| | plain | before | now |
|---|---|---|---|
| a step, 0.6M parameters, processor time | 210 ms | +0.2 % (0.5 ms) | -0.1 % (-0.1 ms) |
| a save, 0.6M (7 MB), processor time | 22.3 ms | +9.9 % (1.9 ms) | +4.6 % (1.0 ms) |
| the same, seconds on the clock | 23.7 ms | +9.4 % | +3.4 % (0.8 ms) |
| a save, 7.8M (93 MB), processor time | 52.6 ms | +12.0 % (6.6 ms) | +0.8 % (0.4 ms) |
| the same, seconds on the clock | 53.7 ms | +14.2 % | +2.1 % (1.2 ms) |

All goals are met. `optimizer.pt` is written without the CRC-32 of each tensor, which `torch.load` never reads; one
XXH3 of the whole file takes half of its time; the sum of the weights finds values that are not finite (0.3 ms of a
save of 7 MB; the norm that it replaces took 0.4, and that save 5.1 %). In `before` the plain saves shared some of our
methods, so that its differences are too small.
"""


GLOBAL_INTRODUCTION = """\
# What happens when a rank fails in scope `global`

Made by `FAULTS_SCOPES=global FAULTS_RUNS={number} make test-faults`: {number} runs drawn with seed {seed}, of the
faults of the trainer that [faults.md](faults.md) describes, and with its checks. Two things are different in scope
`global`:

- a rank is also killed while segments change ranks;
- a window that all ranks together cannot hold is refused by every rank with the same `InfeasibleWindowError`, since all
  make the same plan from the same numbers; in the other scopes the other rank raises a `PeerError`.

{verdict}
"""


def write_table(path, seed, rows, failures, introduction=INTRODUCTION):
    """Writes the page; `failures` are (run, what was violated)."""
    number = len(rows) + len(failures)
    verdict = f"**{len(rows)} of {number} passed.**"
    if not failures:
        longest = max(row["outcome"].seconds for row in rows)
        verdict += f" None hung, none diverged, none lost a checkpoint. The longest took {longest:.1f} s to end."
    text = introduction.format(number=number, seed=seed, verdict=verdict)
    lines = [
        "| run | fault | how | rank | when | scope | launcher | ended after | rank 0 | rank 1 | checkpoint | resumed |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(row) for row in rows]
    lines += [f"| {run.number} | {run.fault} | FAILED: {reason} |" for run, reason in failures]
    path.write_text(text + "\n" + "\n".join(lines) + "\n")


def _row(row):
    run, outcome = row["run"], row["outcome"]
    fault = run.fault
    saves = (KILL_SAVE, machine.SAVE, machine.DAMAGE)
    when = {SAMPLE: f"sample {fault.step}", **dict.fromkeys(saves, f"checkpoint {fault.step}")}.get(
        fault.kind, f"step {fault.step + 1}"
    )
    if fault.kind == KILL and fault.how != EXCHANGE:
        when += f" + {fault.share:.0%} of a window's time"
    rank = "its reader" if fault.kind == SAMPLE else fault.rank
    ends = []
    for number in (0, 1):
        error = outcome.errors[number]
        if error:
            ends.append(error["type"])
        elif fault.kind in (machine.STOP, machine.AGENT):
            ends.append("trained on")
        elif fault.kind in ENDS_BY and number == fault.rank:
            ends.append({machine.TERM: "ended", machine.INTERRUPT: "KeyboardInterrupt"}.get(fault.kind, "killed"))
        else:
            ends.append("ended by torchrun" if run.launcher != PLAIN else "?")
    cells = [run.number, fault.kind, fault.how, rank, when, run.scope, run.launcher, f"{outcome.seconds:.1f} s", *ends]
    cells += [row["checkpoint"], "not needed; bit-equal" if fault.kind == machine.STOP else "bit-equal"]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
