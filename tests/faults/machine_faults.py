"""Faults of the machine and of the numbers: signals, a disk that is full, files that rot, a launcher that dies, NaN."""

import math
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

from transformers import TrainerCallback

import rollout_sft.trainer

SAVE, NAN, DAMAGE, TERM, INTERRUPT, STOP, DISK, AGENT = (
    "a save fails",
    "not finite",
    "damaged checkpoint",
    "SIGTERM",
    "SIGINT",
    "SIGSTOP",
    "full disk",
    "SIGKILL to the agent",
)
KINDS = (SAVE, NAN, DAMAGE, TERM, INTERRUPT, STOP, DISK, AGENT)
PAUSE = 20
"""Seconds that a stopped process stands still."""

HOW = {
    SAVE: [
        "model.safetensors",
        "optimizer.pt",
        "trainer_state.json",
        "the generators' state",
        "the carry buffer",
    ],
    NAN: ["a loss is NaN", "a loss is infinite", "a gradient is infinite"],
    DAMAGE: ["model.safetensors is cut off", "optimizer.pt has a flipped bit", "scheduler.pt is missing"],
    TERM: ["in a window"],
    INTERRUPT: ["in a window"],
    STOP: [f"for {PAUSE} s in a window"],
    DISK: ["no byte more", "no file above 20 kB"],
    AGENT: ["in a window"],
}
RANK_0_ALONE = {"model.safetensors", "optimizer.pt", "trainer_state.json", "no file above 20 kB", *HOW[DAMAGE]}


def plant_machine_fault(trainer, fault, folder, note):
    """Makes `fault` happen in this process; `note` leaves its time for the test."""
    if fault.kind == DAMAGE:
        trainer.args.save_total_limit = 2  # on every rank: one to fall back to
    if trainer.args.process_index != fault.rank:
        return
    if fault.kind == NAN:
        break_numbers(trainer, fault, folder, note)
    else:
        trainer.add_callback(Happens(trainer, fault, folder, note))


class Happens(TrainerCallback):
    """At the end of step `fault.step`, and in the middle of the window behind it."""

    def __init__(self, trainer, fault, folder, note):
        self.trainer, self.fault, self.folder, self.note = trainer, fault, folder, note

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step != self.fault.step:
            return
        if self.fault.kind == SAVE:
            self.note(self.fault, self.folder)
            name = {"the generators' state": f"rng_state_{args.process_index}.pth"}.get(self.fault.how, self.fault.how)
            name = f"carry_buffer_rank{args.process_index}.pt" if name == "the carry buffer" else name
            (self.folder / f"checkpoint-{state.global_step}" / name / "taken").mkdir(parents=True)
        elif self.fault.kind == DISK:
            self.note(self.fault, self.folder)
            room = 0 if self.fault.how == "no byte more" else 20_000
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def on_save(self, args, state, control, **kwargs):
        if self.fault.kind == DAMAGE and state.global_step == self.fault.step:
            damage(self.folder / f"checkpoint-{state.global_step}", self.fault.how)
            self.note(self.fault, self.folder)
            os.kill(os.getpid(), signal.SIGKILL)

    def on_substep_end(self, args, state, control, **kwargs):
        signals = {TERM: signal.SIGTERM, INTERRUPT: signal.SIGINT, STOP: signal.SIGSTOP, AGENT: signal.SIGKILL}
        if self.fault.kind not in signals or state.global_step != self.fault.step or self.trainer.micro_step != 2:
            return
        self.note(self.fault, self.folder)
        pid = os.getppid() if self.fault.kind == AGENT else os.getpid()
        if self.fault.kind == STOP:
            subprocess.Popen(["sh", "-c", f"sleep {PAUSE}; kill -CONT {pid}"], start_new_session=True)
        os.kill(pid, signals[self.fault.kind])
        time.sleep(0.1)


def damage(checkpoint, how):
    """What a bad disk or a careless hand does to a finished checkpoint."""
    path = checkpoint / how.split()[0]
    if how.endswith("missing"):
        path.unlink()
    elif how.endswith("cut off"):
        os.truncate(path, path.stat().st_size // 2)
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def break_numbers(trainer, fault, folder, note):
    """One micro-step of one step is not finite on this rank."""
    weighted = rollout_sft.trainer.weighted_loss
    worst = math.nan if fault.how == "a loss is NaN" else math.inf

    def broken(*args):
        loss = weighted(*args)
        if trainer.state.global_step != fault.step or trainer.micro_step != 1:
            return loss
        note(fault, folder)
        if fault.how == "a gradient is infinite":
            loss.register_hook(lambda gradient: gradient * worst)
            return loss
        return loss + worst

    rollout_sft.trainer.weighted_loss = broken


def make_room(fault, folder):
    """What an administrator does before the run is started again: frees the disk, removes what is damaged."""
    if fault.kind in (SAVE, DAMAGE):
        bad = Path(folder) / f"checkpoint-{fault.step}"
        subprocess.run(["rm", "-r", str(bad)], check=True)
